"""Programs that try to get out of their sandbox, or to use up the machine; `test_sandbox.py` runs them."""

import tempfile
from pathlib import Path
from uuid import uuid4

# A unique name, so that no other file has it in the places where the programs try to write.
NEW = f"new-{uuid4().hex}"
# Hostile programs, each with the reason of its failure.
REFUSED = "PermissionError"
# The judge ends a program that has closed its end of their pipes, if that has not ended yet.
CLOSED = "left with exit code 1|died of SIGKILL"
FULL = "OSError.*No space left on device"
HOSTILE = {
    "fork": ("import os\nwhile True: os.fork()", REFUSED),
    "fork that ignores errors": (
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "timed out",
    ),
    "vfork and exec": ("import subprocess; subprocess.run(['/bin/sh', '-c', 'touch OUTSIDE/new'])", REFUSED),
    "exec": ("import os; os.execv('/bin/sh', ['sh', '-c', 'touch OUTSIDE/new'])", REFUSED),
    "daemon": (
        "import os, time\nif not os.fork():\n os.setsid()\n if not os.fork():\n  time.sleep(1)\n  open('OUTSIDE/x','w')",
        REFUSED,
    ),
    "multiprocessing": ("import multiprocessing as m; m.Process(target=print).start()", REFUSED),
    "memory": ("x = bytearray(1 << 30)", "MemoryError"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "output": ("while True: print('x' * 1000)", "printed too much"),
    "output without newline": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "printed too much"),
    "write to a new file": ("open('OUTSIDE/new', 'w')", REFUSED),
    "write to a file": ("open('OUTSIDE/file', 'a')", REFUSED),
    "write upwards": ("open('../new', 'w')", REFUSED),
    # There may be none, or only one to read.
    "write to the home folder": (f"open({str(Path.home() / NEW)!r}, 'w')", f"{REFUSED}|FileNotFoundError|Read-only"),
    "write to the folder of temporary files": (f"open({str(Path(tempfile.gettempdir()) / NEW)!r}, 'w')", REFUSED),
    "write to /dev/shm": (f"open('/dev/shm/{NEW}', 'w')", REFUSED),
    "write to the libraries": ("import os; open(os.path.dirname(os.__file__) + '/new.py', 'w')", REFUSED),
    "truncate": ("import os; os.truncate('OUTSIDE/file', 0)", REFUSED),
    "delete": ("import os; os.unlink('OUTSIDE/file')", REFUSED),
    "delete the folder": ("import os; os.rmdir(os.getcwd())", REFUSED),
    "make a folder": ("import os; os.mkdir('OUTSIDE/new')", REFUSED),
    "rename into": ("import os; open('a', 'w'); os.rename('a', 'OUTSIDE/a')", "Error"),
    "rename from": ("import os; os.rename('OUTSIDE/file', 'a')", "Error"),
    "mode": ("import os; os.chmod('OUTSIDE', 0)", REFUSED),
    "mode of an open file": ("import os; os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777)", REFUSED),
    "owner": ("import os; os.chown('OUTSIDE/file', 1, 1)", REFUSED),
    "times": ("import os; os.utime('OUTSIDE/file', (0, 0))", REFUSED),
    "extended attribute": ("import os; os.setxattr('OUTSIDE/file', 'user.a', b'b')", REFUSED),
    "symbolic link": ("import os; os.symlink('OUTSIDE', 'a'); open('a/new', 'w')", REFUSED),
    "hard link": ("import os; os.link('OUTSIDE/file', 'a'); open('a', 'w')", REFUSED),
    "open folder": ("import os; f = os.open('OUTSIDE', os.O_PATH); os.open('a', os.O_CREAT, dir_fd=f)", REFUSED),
    "leave by fchdir": ("import os; os.chdir('OUTSIDE'); open('new', 'w')", REFUSED),
    "fifo": ("import os; os.mkfifo('a')", REFUSED),
    "device": ("import os, stat; os.mknod('a', 0o600 | stat.S_IFBLK, os.makedev(254, 0))", REFUSED),
    "chroot": ("import os; os.chroot('.')", REFUSED),
    "read a file": ("open('OUTSIDE/file').read()", REFUSED),
    "list a folder": ("import os; os.listdir('OUTSIDE')", REFUSED),
    "read /etc": ("open('/etc/passwd')", REFUSED),
    "environment of the parent": ("import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()", REFUSED),
    "own memory": ("open('/proc/self/mem', 'rb')", REFUSED),
    "one large file": ("f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError.*File too large"),
    "sparse file": ("open('a', 'wb').truncate(1 << 40)", "OSError.*File too large"),
    "many large files": (
        "n = 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f: f.write(bytes(8 << 20))",
        FULL,
    ),
    "many small files": ("n = 0\nwhile True:\n n += 1\n open(str(n), 'wb').close()", FULL),
    "deleted files": (
        "import os\nfiles = []\nwhile True:\n files.append(open('a', 'wb', buffering=0))\n os.unlink('a')\n"
        " assert files[-1].write(bytes(4 << 20)) == 4 << 20, 'No space left'",
        "No space left",
    ),
    "deleted files under a memory map": (
        "import mmap, os\nmaps = []\nwhile True:\n with open('a', 'w+b') as f:\n  os.posix_fallocate(f.fileno(), 0, 4 << 20)\n"
        "  maps.append(mmap.mmap(f.fileno(), 4 << 20))\n os.unlink('a')",
        FULL,
    ),
    "files without a name": (
        "import os\nwhile True: os.posix_fallocate(os.open('.', os.O_TMPFILE | os.O_RDWR), 0, 4 << 20)",
        FULL,
    ),
    "fallocate": (
        "import os\nn = 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f: os.posix_fallocate(f.fileno(), 0, 8 << 20)",
        FULL,
    ),
    "fallocate beyond the end": (
        "import ctypes, os\nlibc, n = ctypes.CDLL(None, use_errno=True), 0\nwhile True:\n n += 1\n with open(str(n), 'wb') as f:\n"
        "  if libc.fallocate(f.fileno(), 1, ctypes.c_long(0), ctypes.c_long(8 << 20)):\n"
        "   raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))",
        FULL,
    ),
    "copies of files": (
        "import os\nn, one = 0, open('0', 'w+b')\none.write(bytes(4 << 20))\none.flush()\nwhile True:\n n += 1\n"
        " with open(str(n), 'wb') as f: assert os.copy_file_range(one.fileno(), f.fileno(), 4 << 20, 0, 0), 'No space left'",
        "No space left",
    ),
    "space for names": (
        "n = 0\nwhile True:\n n += 1\n open(f'{n:0>255}', 'wb').close()",
        FULL,
    ),
    "many open files": ("x = [open('a', 'w') for _ in range(100)]", "OSError.*Too many open files"),
    "tcp": ("import socket; socket.create_connection(('127.0.0.1', PORT))", REFUSED),
    "udp": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))", REFUSED),
    "unix socket": ("import socket; socket.socket(socket.AF_UNIX).connect('/dev/log')", REFUSED),
    "socket pair": ("import socket; socket.socketpair()", REFUSED),
    "web": ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT')", "Operation not permitted"),
    "kill its parent": ("import os; os.kill(os.getppid(), 9)", REFUSED),
    "kill everyone": ("import os; os.kill(-1, 9)", REFUSED),
    "kill groups": ("import os; os.killpg(os.getpgid(os.getppid()), 9)", REFUSED),
    "kill its own group": ("import os; os.kill(0, 9)", REFUSED),
    "kill by a file": (
        "import fcntl, os, signal; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        REFUSED,
    ),
    "kill by pidfd": ("import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)", REFUSED),
    "limit its parent": ("import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))", REFUSED),
    "slow down its parent": ("import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", REFUSED),
    "raise its limits": (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
        "ValueError: not allowed to raise|PermissionError",
    ),
    "become root": ("import os; os.setuid(0)", REFUSED),
    "kill itself": ("import os; os.kill(os.getpid(), 9)", "died of SIGKILL"),
    "stop itself": ("import os; os.kill(os.getpid(), 19)", "timed out"),
    "crash": ("import os; os.abort()", "died of SIGABRT"),
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "SystemExit": ("raise SystemExit", "SystemExit"),
    "hard exit": ("import os; os._exit(0)", "left with exit code 0 before its end"),
    "exit of a thread": (
        "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
        "left with exit code 0 before its end",
    ),
    "close everything": ("import os; os.closerange(0, 1000); assert False", CLOSED),
    "close everything and end": ("import os; os.closerange(0, 1000)", CLOSED),
    "read everything": (
        "import os\nfor f in range(64):\n try:\n  os.set_blocking(f, False)\n  s = os.read(f, 1000)\n"
        " except OSError: continue\n assert not s, s\nassert False",
        f"AssertionError:$|{CLOSED}",
    ),
    "signal mask": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "timed out|SIGKILL",
    ),
    "signal handler": ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", REFUSED),
    "builtins": (
        "import builtins, os, sys\nbuiltins.BaseException = builtins.str = builtins.type = type('x', (), {})\n"
        "os.write = os._exit = sys.exit = lambda *a: None\nassert False",
        f"AssertionError|TypeError|{CLOSED}",
    ),
    "error that lies": (
        "class E(Exception):\n def __str__(self):\n  import os\n  os._exit(0)\nraise E",
        "^E:$",
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        "SIGSEGV|MemoryError|timed out",
    ),
    "raw system calls": (
        "import ctypes, os\nlibc, parent = ctypes.CDLL(None, use_errno=True), os.getppid()\n"
        # ptrace's attach and seize, process_vm_readv and writev, pidfd_open and getfd, unshare, setns, mount, bpf, io_uring,
        # kcmp, keyctl, prctl, rt_tgsigqueueinfo, setsid, 32-bit numbers.
        "calls = [(101, 16, parent), (101, 0x4206, parent), (310, parent), (311, parent), (434, parent, 0), (438, 3, 1), "
        "(272, 0x10000000), (308, 3, 0), (165, 0, b'/'), (321, 0), (425, 1, 0), (312, parent), (250, 0), (157, 4, 1), "
        "(297, parent, parent, 9), (112,), (0x40000000 + 39,)]\n"
        "if os.uname().machine == 'x86_64':\n for call in calls:\n  assert libc.syscall(*call) == -1, call\n"
        "  assert ctypes.get_errno() == 1, (call, ctypes.get_errno())\nraise PermissionError",
        REFUSED,
    ),
    "calls of 32 bits": (
        "import ctypes, mmap, os\nif os.uname().machine != 'x86_64': os.abort()\n"
        # mov eax, 2; int 0x80; ret: fork in the other numbering.
        "code = mmap.mmap(-1, 4096, prot=7)\ncode.write(b'\\xb8\\x02\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
        "died of SIG",
    ),
    "broken source": ("def f(:", "SyntaxError"),
    "zero byte": ("a = '\0'", "SyntaxError|ValueError"),
    "half a character": ("a = '\ud800'", "UnicodeEncodeError|SyntaxError"),
    "standard input": ("input()", "EOFError"),
}
