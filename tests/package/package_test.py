"""The Debian packages of the library are enough for projects outside of the tree. Nothing is installed: they are unpacked."""
import shutil
import unittest

from consumer import BUILD, CMAKE, LIBRARY_COMPONENTS, Consumers, run

CPACK = CMAKE.removesuffix("cmake") + "cpack"


@unittest.skipUnless(shutil.which("dpkg-deb") and shutil.which("dpkg-shlibdeps"), "needs dpkg-dev")
class Package(Consumers):
    def setUp(self):
        super().setUp()
        packages = self.folder / "packages"
        run(CPACK, "--config", BUILD / "CPackConfig.cmake", "-G", "DEB", "-B", packages,
            "-D", "CPACK_COMPONENTS_ALL=" + ";".join(LIBRARY_COMPONENTS))
        self.packages = {file.name.split("_")[0]: file for file in packages.glob("*.deb")}

    def test_consumers_use_what_it_holds(self):
        self.assertEqual(sorted(self.packages), ["libmikv-dev", "libmikv0.1"])
        root = self.folder / "root"
        for file in self.packages.values():
            run("dpkg-deb", "-x", file, root)
        self.check_find_package(root / "usr")
        self.check_find_package_in_c(root / "usr")
        self.check_pkg_config(root / "usr")

    def test_says_what_it_needs(self):
        def field(package, name):
            return run("dpkg-deb", "-f", self.packages[package], name).strip()

        self.assertRegex(field("libmikv0.1", "Depends"), r"libc6.*libhwy")
        self.assertEqual(field("libmikv-dev", "Depends"), f"libmikv0.1 (= {field('libmikv0.1', 'Version')}), libhwy-dev")
        for package in self.packages:
            self.assertEqual(field(package, "Maintainer"), "mikv developers")
            self.assertIn("KV cache", field(package, "Description"))

    def test_holds_nothing_of_the_build(self):
        """Neither paths of this machine nor files of other components."""
        names = "".join(run("dpkg-deb", "-c", file) for file in self.packages.values())
        self.assertNotIn("bin/", names)
        self.assertNotIn("llama", names)
        root = self.folder / "root"
        for file in self.packages.values():
            run("dpkg-deb", "-x", file, root)
        for file in root.rglob("*"):
            if file.is_file() and file.suffix in (".cmake", ".pc", ".so"):
                self.assertNotIn(str(BUILD).encode(), file.read_bytes(), file)


if __name__ == "__main__":
    unittest.main()
