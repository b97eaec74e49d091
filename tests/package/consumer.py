"""What the tests of this folder share: the build under test, and how its consumers are built and run."""
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = pathlib.Path(os.environ.get("MIKV_BUILD", ROOT / "build"))
CMAKE = os.environ.get("MIKV_CMAKE", "cmake")
LIBRARY_COMPONENTS = ("library", "dev")


CCACHE = shutil.which("ccache")
LAUNCHERS = {f"CMAKE_{language}_COMPILER_LAUNCHER": CCACHE for language in ("C", "CXX") if CCACHE}
CPP, C = ROOT / "examples/minimal.cpp", ROOT / "examples/minimal.c"
DEFINES = (f"-DCPP_EXAMPLE={CPP}", f"-DC_EXAMPLE={C}")


def run(*command, folder=None, **environment):
    """Runs a command, in a folder; its output is in the exception if it fails."""
    result = subprocess.run([str(word) for word in command], cwd=folder, env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(str(word) for word in command)}\nexit status {result.returncode}\n{result.stdout}")
    return result.stdout


class Consumers(unittest.TestCase):
    """A folder for each test, removed at its end."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mikv-package-"))
        self.addCleanup(shutil.rmtree, self.folder)
        # Each run has other folders: ccache is to see the paths below them only.
        self.compiles = {**LAUNCHERS, "CCACHE_BASEDIR": str(self.folder), "CCACHE_NOHASHDIR": "1"}

    def install(self):
        prefix = self.folder / "prefix"
        for component in LIBRARY_COMPONENTS:
            run(CMAKE, "--install", BUILD, "--prefix", prefix, "--component", component)
        return prefix

    def compile(self, *command):
        """Compiles one file as a user would, if anything it sees has changed since it was compiled last."""
        run(*([CCACHE] if CCACHE else []), *command, folder=self.folder, **self.compiles)

    def libraries(self, prefix):
        """The folder of libmikv.so under a prefix."""
        found = sorted(prefix.rglob("libmikv.so"))
        self.assertEqual(len(found), 1, found)
        return found[0].parent

    def check_find_package(self, prefix):
        build = self.folder / "cmake-consumer"
        run(CMAKE, "-S", HERE / "consumer", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", *DEFINES,
            **self.compiles)
        run(CMAKE, "--build", build, "--parallel", "2", **self.compiles)
        for program in ("cpp_shared", "cpp_static", "c_shared", "c_static"):
            with self.subTest(program=program):
                run(build / program)
        self.assertIn("libmikv.so", run("readelf", "-d", build / "cpp_shared"))
        self.assertNotIn("libmikv.so", run("readelf", "-d", build / "cpp_static"))

    def check_find_package_in_c(self, prefix):
        build = self.folder / "c-consumer"
        run(CMAKE, "-S", HERE / "c_consumer", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", *DEFINES,
            **self.compiles)
        run(CMAKE, "--build", build, **self.compiles)
        run(build / "c_only")

    def check_pkg_config(self, prefix):
        libraries = self.libraries(prefix)
        search = {"PKG_CONFIG_PATH": str(libraries / "pkgconfig")}

        def flags(*options):
            return run("pkg-config", *options, "mikv", **search).split()

        compilers = ((os.environ.get("CXX", "c++"), ["-std=c++20"], CPP), (os.environ.get("CC", "cc"), [], C))
        for compiler, options, source in compilers:
            for kind in ("shared", "static"):
                with self.subTest(source=source.name, kind=kind):
                    program = self.folder / f"pkg-config-{kind}{source.suffix.replace('.', '-')}"
                    static = ["--static"] if kind == "static" else []
                    self.compile(compiler, *options, *flags(*static, "--cflags"), "-c", source, "-o", f"{program}.o")
                    used = ["-l:libmikv.a" if static and flag == "-lmikv" else flag for flag in flags(*static, "--libs")]
                    run(compiler, f"{program}.o", "-o", program, *used)
                    run(program, LD_LIBRARY_PATH=str(libraries))
