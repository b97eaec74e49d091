"""Weights on two ggml-rpc-servers on loopback, cache and attention here: the text is that of one process."""

import os
import socket
import subprocess
import time
import unittest

MIKV = os.environ["MIKV_BINARY"]
RPC_SERVER = os.path.join(os.environ["MIKV_LLAMA_LIBRARIES"], "ggml-rpc-server")
PROMPT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def complete(kv, *flags):
    run = subprocess.run([MIKV, "completion", "-m", os.environ["MIKV_TEST_MODEL"], "-p", PROMPT, "-n", "12", "-no-cnv", "--temp", "0", "-t", "1",
                          "--no-display-prompt", "--kv", kv, *flags], capture_output=True, text=True, timeout=300,
                         env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip(), run.stderr


class RpcTest(unittest.TestCase):
    def test_two_servers(self):
        ports = [free_port(), free_port()]
        servers = [subprocess.Popen([RPC_SERVER, "-p", str(port), "-t", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for port in ports]
        try:
            deadline = time.monotonic() + 30
            for port in ports:
                while time.monotonic() < deadline:
                    try:
                        socket.create_connection(("127.0.0.1", port), 1).close()
                        break
                    except OSError:
                        time.sleep(0.1)
            for kv in ("full", "mikv"):
                alone, _ = complete(kv)
                remote, log = complete(kv, "--rpc", ",".join(f"127.0.0.1:{port}" for port in ports), "-ngl", "99")
                self.assertEqual(remote, alone, kv)
                self.assertTrue(all(server.poll() is None for server in servers), log)
        finally:
            for server in servers:
                server.kill()
                server.wait()


if __name__ == "__main__":
    unittest.main()
