"""A filter of system calls (seccomp) for the sandbox: what no program needs that is to be judged by
its results.
"""

import platform
import sys

# Numbers on x86_64 and aarch64, of the kernel's headers <asm/unistd_64.h> and
# <asm-generic/unistd.h>.
REFUSED = {
    # other processes: their memory, files and counters
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    # programs in the kernel, and ways into it that have been holes
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # namespaces, mounts, files by handle
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    # memory that belongs to no process, so that nobody sees whose it is
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
CLONE = (56, 220)
CLONE3 = (435, 435)
SOCKET = (41, 198)
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of <linux/audit.h>
X32_CALLS = 0x40000000  # and above: the same calls under other numbers
NEW_NAMESPACES = 0x7E020000  # the flags CLONE_NEW* of <linux/sched.h>
AF_UNIX = 1
EPERM = 1
ENOSYS = 38
# Of <linux/bpf_common.h> and <linux/seccomp.h>.
LOAD = 0x20
JUMP_IF_EQUAL = 0x15
JUMP_IF_ABOVE = 0x35  # or equal
JUMP_IF_ANY_BIT = 0x45
RETURN = 0x06
# Where they lie in struct seccomp_data.
NUMBER = 0
ARCHITECTURE = 4
FIRST_ARGUMENT = 16
ALLOW = 0x7FFF0000
ERROR = 0x00050000


def filter_rows() -> list[tuple[int, int, int, int]]:
    """The filter as rows of struct sock_filter: code, steps if true, steps if false, value. Refused
    calls fail with EPERM. Empty on other machines than 64-bit x86 and ARM.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES or sys.maxsize < 2**32:
        return []
    column = list(ARCHITECTURES).index(machine)
    refuse = (RETURN, 0, 0, ERROR | EPERM)
    rows = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, ARCHITECTURES[machine]),
        refuse,  # a call by the 32-bit way has other numbers
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_ABOVE, 0, 1, X32_CALLS),
        refuse,
    ]
    for numbers in REFUSED.values():
        rows += [(JUMP_IF_EQUAL, 0, 1, numbers[column]), refuse]
    return [
        *rows,
        (JUMP_IF_EQUAL, 0, 1, CLONE3[column]),
        (RETURN, 0, 0, ERROR | ENOSYS),  # its flags cannot be seen; the C library then uses clone
        (JUMP_IF_EQUAL, 0, 3, CLONE[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_ANY_BIT, 0, 4, NEW_NAMESPACES),
        refuse,
        (JUMP_IF_EQUAL, 0, 2, SOCKET[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 0, 1, AF_UNIX),
        (RETURN, 0, 0, ALLOW),
        refuse,
    ]
