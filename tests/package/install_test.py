"""What `cmake --install` installs is enough for projects outside of the tree."""
import re
import unittest

from consumer import CMAKE, ROOT, Consumers, run


class Install(Consumers):
    def test_consumers_find_it_with_cmake(self):
        self.check_find_package(self.install())

    def test_a_project_in_c_finds_it_with_cmake(self):
        self.check_find_package_in_c(self.install())

    def test_consumers_find_it_with_pkg_config(self):
        self.check_pkg_config(self.install())

    def test_a_moved_prefix_works(self):
        moved = self.folder / "moved"
        self.install().rename(moved)
        self.check_find_package_in_c(moved)
        self.check_pkg_config(moved)

    def test_a_later_minor_version_is_refused(self):
        (self.folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(later LANGUAGES C)\nfind_package(mikv 0.2 REQUIRED)\n")
        with self.assertRaisesRegex(AssertionError, "mikv"):
            run(CMAKE, "-S", self.folder, "-B", self.folder / "build", f"-DCMAKE_PREFIX_PATH={self.install()}")

    def test_versions_agree(self):
        prefix = self.install()
        header = (ROOT / "include/mikv/version.h").read_text()
        version = ".".join(re.findall(r"^#define MIKV_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.M))
        libraries = self.libraries(prefix)
        self.assertEqual(run("pkg-config", "--modversion", "mikv", PKG_CONFIG_PATH=str(libraries / "pkgconfig")).strip(), version)
        self.assertTrue((libraries / f"libmikv.so.{version}").exists())
        major, minor, _ = version.split(".")
        so_version = major if major != "0" else f"0.{minor}"  # before 1.0 a minor version may change the API
        self.assertIn(f"libmikv.so.{so_version}]", run("readelf", "-d", libraries / "libmikv.so"))

    def test_headers_stand_alone(self):
        """Each public header compiles by itself, those of C as C and as C++."""
        prefix = self.install()
        for header in sorted((prefix / "include/mikv").iterdir()):
            languages = (("c++", "-std=c++20"), ("c", "-std=c11")) if header.suffix == ".h" else (("c++", "-std=c++20"),)
            for language, standard in languages:
                with self.subTest(header=header.name, language=language):
                    source = self.folder / f"alone.{language}"
                    source.write_text(f"#include <mikv/{header.name}>\nextern int not_empty;\n")
                    self.compile("c++" if language == "c++" else "cc", "-x", language, standard, "-Wall", "-Wextra", "-Wpedantic",
                                 "-Werror", "-I", prefix / "include", "-c", source, "-o", self.folder / "alone.o")


if __name__ == "__main__":
    unittest.main()
