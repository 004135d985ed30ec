"""What an agent with a shell would try from inside: a program of its own, for it runs there with nothing of this project.

Reads a JSON object of what there is to be attacked from the file named first; writes what came of each attempt to the second:
"done", or the name of the error that refused it.
"""

import ctypes
import errno
import json
import os
import socket
import sys


def attempt(work, *arguments):
    try:
        return "done" if work(*arguments) is not False else "refused"
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)


def read(path):
    with open(path, "rb") as file:
        return file.read(64)


def write(path):
    with open(path, "w") as file:
        file.write("written")


def lists(path, name):
    return name in os.listdir(path)


def connect(family, address):
    with socket.socket(family) as opened:
        opened.settimeout(5)
        opened.connect(address)


def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *(arguments or (0, 0, 0, 0, 0, 0))) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def by_proxy(target):
    with socket.create_connection(("127.0.0.1", 3128), 5) as proxy:
        proxy.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return proxy.recv(64).startswith(b"HTTP/1.1 200")


def try_all(wanted):
    found = {}
    for path in wanted["read"]:
        found[f"read {path}"] = attempt(read, path)
    for path, name in wanted["list"]:
        found[f"list {path}"] = attempt(lists, path, name)
    for path in wanted["write"]:
        found[f"write {path}"] = attempt(write, path)
    for path in wanted["unix"]:
        found[f"unix {path}"] = attempt(connect, socket.AF_UNIX, path.replace("@", "\0"))
    for port in wanted["tcp"]:
        found[f"tcp {port}"] = attempt(connect, socket.AF_INET, ("127.0.0.1", port))
    for target in wanted["proxy"]:
        found[f"proxy {target}"] = attempt(by_proxy, target)
    for pid in wanted["pids"]:
        found[f"signal {pid}"] = attempt(os.kill, pid, 0)
        for name in ("environ", "mem", "cwd/.", "root/etc/passwd"):
            found[f"read /proc/{pid}/{name}"] = attempt(os.stat if "/" in name else read, f"/proc/{pid}/{name}")
    for name, number in wanted["calls"].items():
        found[f"call {name}"] = attempt(call, number)
    for name, (number, *arguments) in wanted["with"].items():
        found[f"call {name}"] = attempt(call, number, *arguments)
    found["be root"] = attempt(os.setuid, 0)
    return found


if __name__ == "__main__":
    with open(sys.argv[1]) as told:
        tried = try_all(json.load(told))
    with open(sys.argv[2] + ".part", "w") as file:
        json.dump(tried, file)
    os.rename(sys.argv[2] + ".part", sys.argv[2])
