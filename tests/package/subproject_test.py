"""As a part of another project mikv is a library: it fetches nothing and leaves the project's settings alone."""
import json
import re
import shlex
import shutil
import unittest

from consumer import BUILD, CMAKE, DEFINES, HERE, ROOT, Consumers, run


class Subproject(Consumers):
    def configure(self, *options):
        # Whatever asked for a package would find neither an index nor a cache, and would leave its traces here.
        home = self.folder / "home"
        home.mkdir()
        self.environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "MIKV_CACHE": str(home / "mikv"),
                            "PIP_NO_INDEX": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
        self.build = self.folder / "build"
        query = self.build / ".cmake/api/v1/query"
        query.mkdir(parents=True)
        (query / "codemodel-v2").touch()
        run(CMAKE, "-S", HERE / "subproject", "-B", self.build, "-G", "Ninja", f"-DMIKV_SOURCE={ROOT}", *DEFINES, *options,
            **self.environment)
        self.assertEqual(list(home.iterdir()), [])

    def targets(self):
        """Everything that the project would build or run."""
        replies = (self.build / ".cmake/api/v1/reply").glob("target-*.json")
        return {json.loads(reply.read_text())["name"] for reply in replies}

    def test_builds_the_library_alone(self):
        self.configure()
        self.assertEqual({name for name in self.targets() if name.startswith("mikv")},
                         {"mikv", "mikv_objects", "mikv_shared", "mikv_warnings"} & self.targets())
        self.assertFalse((self.build / "mikv/llama.txt").exists())
        # Nothing is built yet: install rules would fail.
        run(CMAKE, "--install", self.build, "--prefix", self.folder / "prefix")

    def test_consumers_link_it(self):
        self.configure("-DCMAKE_BUILD_TYPE=Release")
        # Compiling the library once more would take minutes: of its sources one is compiled, and the build under test
        # provides libmikv.a. The consumers are compiled and linked as the project would.
        library = self.build / "mikv/src/libmikv.a"
        library.parent.mkdir(parents=True, exist_ok=True)
        for command in run("ninja", "-C", self.build, "-t", "commands", "cpp", "c").splitlines():
            if command.startswith("ninja: ") or ("mikv_objects" in command and "-c " + str(ROOT / "src/spec") not in command):
                continue
            if not library.exists():
                shutil.copy(BUILD / "src/libmikv.a", library)
            if (output := re.search(r" -o (\S+)", command)):
                (self.build / output[1]).parent.mkdir(parents=True, exist_ok=True)
            run("sh", "-c", f"cd {shlex.quote(str(self.build))} && {command}")
        run(self.build / "cpp")
        run(self.build / "c")
        exported = run("nm", "-C", self.build / "mikv/src/CMakeFiles/mikv_objects.dir/spec/spec.cpp.o")
        self.assertIn("mikv::Spec::parse", exported)


if __name__ == "__main__":
    unittest.main()
