"""Gives up all rights that a program does not need.

This module runs in the sandbox, so it imports only the standard library. Nothing can be undone: the kernel enforces Landlock
rules, a seccomp filter and lowered hard limits for the rest of a process' life.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Collection
from contextlib import suppress
from typing import Any

# System calls that a program may make: name, number on x86_64 and number on aarch64. All others are refused. So a program
# cannot start a second process or another program, open a socket, signal other processes, change a file's owner, mode or
# times, leave anything behind (System V memory, message queues, keys), or set a signal handler, which would get a frame.
CALLS = """
read 0 63  write 1 64  open 2 -  close 3 57  stat 4 -  fstat 5 80  lstat 6 -  poll 7 -  lseek 8 62  mmap 9 222
mprotect 10 226  munmap 11 215  brk 12 214  rt_sigprocmask 14 135  rt_sigreturn 15 139
pread64 17 67  pwrite64 18 68  readv 19 65  writev 20 66  access 21 -  pipe 22 -  select 23 -  sched_yield 24 124
mremap 25 216  madvise 28 233  dup 32 23  dup2 33 -  pause 34 -  nanosleep 35 101  getitimer 36 102  alarm 37 -
setitimer 38 103  getpid 39 172  sendfile 40 71  exit 60 93  wait4 61 260  uname 63 160  flock 73 32  fsync 74 82
fdatasync 75 83  ftruncate 77 46  getcwd 79 17  chdir 80 49  fchdir 81 50  rename 82 -  unlink 87 -  readlink 89 -
umask 95 166  gettimeofday 96 169  getrlimit 97 163  getrusage 98 165  sysinfo 99 179  times 100 153  getuid 102 174
getgid 104 176  geteuid 107 175  getegid 108 177  getppid 110 173  getpgrp 111 -  getgroups 115 158  getpgid 121 155
getsid 124 156  rt_sigpending 127 136  rt_sigtimedwait 128 137  sigaltstack 131 132  statfs 137 43  fstatfs 138 44
getpriority 140 141  gettid 186 178  time 201 -  futex 202 98  sched_getaffinity 204 123  getdents64 217 61
restart_syscall 219 128  fadvise64 221 223  clock_gettime 228 113  clock_getres 229 114  clock_nanosleep 230 115
exit_group 231 94  openat 257 56  newfstatat 262 79  unlinkat 263 35  renameat 264 38  readlinkat 267 78
faccessat 269 48  pselect6 270 72  ppoll 271 73  set_robust_list 273 99  fallocate 285 47  dup3 292 24  pipe2 293 59
getcpu 309 168  renameat2 316 276  getrandom 318 278  membarrier 324 283  copy_file_range 326 285  statx 332 291
rseq 334 293  close_range 436 436  faccessat2 439 439
"""
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# The file rights of Landlock's first version; newer versions are not needed.
READ_FILE, WRITE_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, ALL_RIGHTS = (
    1 << 2,
    1 << 1,
    1 << 3,
    1 << 5,
    1 << 8,
    (1 << 13) - 1,
)
# Readable in addition to the interpreter's own libraries.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")


class _Libc:
    """Calls functions of the C library; raises `OSError` if they fail."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)

    def __call__(self, name: str, *arguments: Any) -> int:
        result = int(getattr(self.library, name)(*arguments))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result


def limit(limits: dict[str, int], *, strict: bool) -> None:
    """Lowers soft and hard limits; keys are their names in `resource`."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        # At the soft limit of CPU time the kernel sends SIGXCPU, at the hard one it kills the process.
        pair = (value, value + (name == "RLIMIT_CPU"))
        soft, hard = pair if most == resource.RLIM_INFINITY else (min(each, most) for each in pair)
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):
            if strict:
                raise


def check_system() -> None:
    """Raises `OSError` on systems for which this module has no rules."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise OSError(f"programs cannot be confined on {sys.platform} with {machine}")


def give_files(folder: str, size: int, number: int) -> str:
    """Puts an empty file system over a folder, in memory, whose size and number of files the kernel limits.

    Only this process and its children see it, and it ends with them. This needs a mount namespace: as an ordinary user one
    of a user namespace, which some systems do not allow.

    Returns:
        Why the system does not allow it, or "".
    """
    libc, user, group = _Libc(), os.getuid(), os.getgid()
    why = ""
    for flags in (_NEW_USER | _NEW_MOUNTS, _NEW_MOUNTS):
        try:
            libc("unshare", flags)
            if flags & _NEW_USER:
                for name, text in (
                    ("setgroups", "deny"),
                    ("uid_map", f"{user} {user} 1"),
                    ("gid_map", f"{group} {group} 1"),
                ):
                    with open(f"/proc/self/{name}", "w") as file:
                        file.write(text)
            libc("mount", None, b"/", None, 1 << 18 | 1 << 14, None)  # MS_PRIVATE, MS_REC
            options = f"size={size},nr_inodes={number},mode=700".encode()
            libc(
                "mount", b"files", folder.encode(), b"tmpfs", 1 << 1 | 1 << 2 | 1 << 3, options
            )  # no suid, devices, programs
            os.chdir(folder)
            with open("here", "x"):
                os.unlink("here")
            return ""
        except OSError as error:
            why = why or str(error)
    return why


def restrict(folder: str, parent: int, *, writable: bool) -> None:
    """Restricts this process and its children to reading their libraries, and to plain files in one folder.

    Raises:
        OSError: If the system cannot enforce it.
    """
    libc = _Libc()
    # Without capabilities, limits and permissions bind root as well: version 3, this process, six empty sets.
    libc("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))
    libc("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    die_with(parent)
    _restrict_files(libc, folder, writable)


def die_with(parent: int) -> None:
    """Ends this process when its parent ends."""
    _Libc()("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def confine(folder: str, killable: Collection[int]) -> None:
    """Restricts this process to computing, and to sending signals to `killable`.

    Raises:
        OSError: If the system cannot enforce it.
    """
    libc = _Libc()
    code = _filter(os.uname().machine, killable)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc("prctl", 22, 2, program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    _check(libc, folder)


def _restrict_files(libc: _Libc, folder: str, writable: bool) -> None:
    """Restricts file access by Landlock (Salaün 2017-2021, https://docs.kernel.org/userspace-api/landlock.html).

    The program cannot create subfolders or links.
    """
    ruleset = libc("syscall", 444, struct.pack("=Q", ALL_RIGHTS), 8, 0)
    own = {
        os.path.join(prefix, name) for prefix in (sys.base_prefix, sys.base_exec_prefix) for name in ("lib", "lib64")
    }
    rights = dict.fromkeys([*own, *LIBRARIES, "/dev/urandom"], READ_FILE | READ_DIR)
    write = WRITE_FILE | REMOVE_FILE | MAKE_REG if writable else 0
    rights |= {os.devnull: READ_FILE | WRITE_FILE, folder: READ_FILE | READ_DIR | write}
    for path, access in rights.items():
        if os.path.exists(path):
            beneath = os.open(path, os.O_PATH)
            access &= ALL_RIGHTS if os.path.isdir(path) else ~READ_DIR
            libc("syscall", 445, ruleset, 1, struct.pack("=Qi", access, beneath), 0)
            os.close(beneath)
    libc("syscall", 446, ruleset, 0)
    os.close(ruleset)


def _filter(machine: str, killable: Collection[int]) -> bytes:
    """Returns the seccomp filter as classic BPF: 8 bytes per instruction, over `struct seccomp_data`."""
    column, architecture = ARCHITECTURES[machine]
    allow, refuse, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # refuse: EPERM, missing: ENOSYS
    code = b""

    def emit(operation: int, value: int, true: int = 0, false: int = 0) -> None:
        nonlocal code
        code += struct.pack("=HBBI", operation, true, false, value)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    emit(load, 4)
    emit(equal, architecture, true=1)
    emit(give, kill)
    emit(load, 0)
    words = CALLS.split()
    for number in words[1 + column :: 3]:
        if number != "-":
            emit(equal, int(number), false=1)
            emit(give, allow)

    def allow_if(numbers: tuple[int, int], argument: int, values: Collection[int], test: int = equal) -> None:
        emit(equal, numbers[column], false=2 * len(values) + 2)
        emit(load, 16 + 8 * argument)
        for value in values:
            emit(test, value, false=1)
            emit(give, allow)
        emit(give, refuse)

    allow_if((56, 220), 0, [0x10000], any_bit)  # clone, for threads only
    allow_if((62, 129), 0, killable)  # kill
    allow_if((234, 131), 0, killable)  # tgkill
    allow_if((302, 261), 0, [0])  # prlimit64
    # fcntl without F_SETOWN, which makes the kernel send signals, and those ioctls that `open` and `isatty` use.
    allow_if((72, 25), 1, [0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030])
    allow_if((16, 29), 1, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451])
    emit(equal, 435, false=1)
    emit(give, missing)  # clone3, whose flags are in memory: the C library then uses clone
    emit(give, refuse)
    return code


def _check(libc: _Libc, folder: str) -> None:
    """Tries forbidden actions once, instead of trusting that the kernel enforces the rules."""
    done = []
    with suppress(OSError):
        os.close(os.open(f"{folder}-outside", os.O_CREAT | os.O_WRONLY))
        os.unlink(f"{folder}-outside")
        done.append("write outside its folder")
    with suppress(OSError):
        if not os.fork():
            os._exit(0)
        done.append("start processes")
    with suppress(OSError):
        libc("socket", 2, 1, 0)
        done.append("open sockets")
    if done:
        raise OSError(f"with all restrictions in place, a process can still {' and '.join(done)}")
