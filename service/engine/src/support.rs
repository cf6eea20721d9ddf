//! What becomes of each kind of kernel object: the table of ckpt-support(7). `ckptd --print-support` prints it as mdoc(7), and a test compares
//! the shipped page with it.

use std::fmt::Write;

/// What a checkpoint and restore make of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// As it was.
    Restored,
    /// There again, but not as it was; a problem of this code tells of it where it is told.
    Reset(&'static str),
    /// Stands against a checkpoint, with a problem of this code.
    Refused(&'static str),
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The kind, as the manuals name it.
    pub kind: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// What is to be known besides.
    pub note: &'static str,
}

const fn restored(kind: &'static str, note: &'static str) -> Row {
    Row { kind, fate: Fate::Restored, note }
}

const fn reset(kind: &'static str, code: &'static str, note: &'static str) -> Row {
    Row { kind, fate: Fate::Reset(code), note }
}

const fn refused(kind: &'static str, code: &'static str, note: &'static str) -> Row {
    Row { kind, fate: Fate::Refused(code), note }
}

/// Descriptors that are files.
const FILES: &[Row] = &[
    restored(
        "regular file, directory",
        "offset, flags, locks (POSIX, OFD, flock), leases, owner and signal; by its path",
    ),
    restored("file without a name", "O_TMPFILE, unlinked, replaced; its content is in the image"),
    restored(
        "what lies in RuntimeDirectory=, PrivateTmp= and TemporaryFileSystem= of a unit",
        "of the last where it is writable and not below /run",
    ),
    restored("O_PATH, symbolic link, hard links", "another name of a file is known on btrfs only"),
    restored("FIFO, pipe", "content, size, packets, ends that are closed, or that nobody has opened yet"),
    restored("/dev/null, zero, full, random, urandom; kmsg for writing", ""),
    restored("/proc/PID of a member, /proc/1, /proc, /sys", "read anew from the offset"),
    restored("/proc/PID/ns of a member", ""),
    restored(
        "pseudo-terminal",
        "where the master is of the group too; another number if its own is taken (terminal-number)",
    ),
    reset(
        "file open for writing outside the subvolumes",
        "unpaired-file",
        "its content stays as it is at the restore",
    ),
    reset("delegation of a file server", "file-lease", ""),
    reset("F_NOTIFY of a directory (dnotify)", "", "not kept; the kernel tells nobody of it"),
    reset("F_SET_RW_HINT; output of a pseudo-terminal that is stopped (TCOOFF)", "", "not kept"),
    refused("other terminals", "terminal", ""),
    refused("other character devices", "device", ""),
    refused("block device", "block-device", ""),
    refused("/proc/PID of others", "proc-file", ""),
    refused("namespace of others", "namespace-descriptor", ""),
    refused("file on no mounted file system", "path-unreachable", ""),
    refused("lease that is being broken", "file-lease", ""),
    refused(
        "files of pressure stall information that are open for writing",
        "pressure-trigger",
        "/proc/pressure, memory.pressure of cgroups",
    ),
    refused(
        "flock(2) and OFD locks of what is no file: FIFO, memfd, terminal",
        "file-lock",
        "POSIX locks of them are restored",
    ),
];

/// Descriptors that are objects of the kernel.
const OBJECTS: &[Row] = &[
    restored("eventfd, signalfd, timerfd", ""),
    restored("epoll", "nested, edge-triggered, one-shot, of numbers that were closed since"),
    restored("memfd", "seals, offset, sharing with mappings"),
    restored("pidfd", "of members, also of zombies and of those that were waited for"),
    restored(
        "io_uring with nothing under way, or with what ends while the group stands still (reads and writes of files)",
        "counters, completions that were not read, entries that were not submitted, waiting threads, sharing between processes; has \
         IORING_SETUP_SUBMIT_ALL and not IORING_SETUP_COOP_TASKRUN, which nobody tells; NAPI and limits of workers are lost",
    ),
    reset("busy polling of epoll (EPIOCSPARAMS)", "", "not kept"),
    reset("inotify", "inotify-events", "watches are restored, events that wait are lost"),
    reset(
        "fanotify",
        "fanotify-events",
        "marks of files, mounts and file systems are restored, events that wait are lost",
    ),
    refused("inotify watch of a file without a name", "inotify-watch", ""),
    refused("pidfd of others", "pidfd-outside", ""),
    refused("epoll item of a file that is not open in the group", "epoll-target", ""),
    refused("fanotify with permission events", "fanotify", ""),
    refused(
        "io_uring with requests that wait (for a socket, a pipe, a time), that were made in a form with more or less than one completion \
         each, or with what is registered",
        "io-uring",
        "files, buffers, descriptors, eventfds, credentials in use, restrictions",
    ),
    refused(
        "io_uring with IORING_SETUP_SQPOLL, IOPOLL, SINGLE_ISSUER, R_DISABLED, NO_MMAP, SQE128 or CQE32",
        "io-uring",
        "",
    ),
    refused("userfaultfd", "userfaultfd", ""),
    refused("perf_event", "perf-event", ""),
    refused("bpf", "bpf", ""),
    refused("Landlock ruleset", "landlock", "rulesets that are enforced are no descriptors"),
    refused("KVM", "kvm", ""),
    refused("fsopen, fspick", "mount-object", ""),
    restored(
        "POSIX message queue that a member has open",
        "name, limits, owner, messages, waiting processes; unlinked too",
    ),
    refused("POSIX message queue of whose messages somebody is to be told (mq_notify)", "message-queue", ""),
    refused("any other kind", "descriptor-kind", ""),
];

/// Sockets.
const SOCKETS: &[Row] = &[
    restored(
        "unix, inside the group",
        "queues, descriptors and credentials in flight, names, SO_PEERCRED, ends that are closed; an empty message among others is met by \
         one checkpoint only",
    ),
    reset("unix stream to outside", "", "hung up; the journal's is connected to it again"),
    restored("unix datagram to outside", "connected again by the peer's name"),
    restored("TCP and MPTCP, listening or bound", ""),
    restored("TCP inside the group", "queues both ways, half-closed, closed, waiting to be accepted"),
    reset("TCP to outside", "", "the application finds it reset"),
    reset(
        "TCP to outside, where tcp = repair",
        "tcp-moved-on",
        "goes on where it stands as it did, else reset: see ckpt-group(5)",
    ),
    reset("TCP that was written to and not accepted", "tcp-waiting", "reset"),
    reset(
        "TCP whose other end was closed with more under way than there was room for",
        "tcp-under-way",
        "reset, where its end would come too early",
    ),
    reset(
        "TCP inside the group for which the kernel encrypts (TLS)",
        "tcp-tls",
        "reset: nobody tells the keys",
    ),
    restored("UDP, UDP-Lite, ICMP, raw", "address, peer, options, multicast groups"),
    restored(
        "datagrams that wait in UDP and UDP-Lite sockets",
        "sender, TTL, class, destination and order; what cannot come back just so (sent to a multicast group, or by an interface that the \
         application is told of) is lost: datagram-queue; an empty one is met by one checkpoint only",
    ),
    restored("netlink", "port, groups, options"),
    restored("packet", "interface, protocol, options, filter"),
    reset(
        "packets of ICMP, raw and packet sockets and netlink messages that wait",
        "datagram-queue",
        "lost; of netlink: netlink-queue",
    ),
    reset("errors and the error queue (MSG_ERRQUEUE) of a datagram socket", "socket-error", "lost"),
    reset(
        "time stamps and ends of MSG_ZEROCOPY that wait in the error queue of a TCP connection",
        "",
        "lost",
    ),
    reset(
        "TCP_WINDOW_CLAMP and IPV6_V6ONLY of a connection, keys of TCP_MD5SIG",
        "",
        "not kept; the keys nobody is told of by the socket",
    ),
    refused(
        "unix connection that was written to and not accepted",
        "unix-waiting",
        "where it stays so: the window opens at a moment in which none waits",
    ),
    refused("urgent data that waits (MSG_OOB)", "urgent-data", ""),
    refused("multicast group with sources", "multicast-sources", ""),
    refused("packet ring, fanout", "packet-ring", "or packet-fanout"),
    reset(
        "programs that choose among sockets of a port (SO_ATTACH_REUSEPORT_CBPF, _EBPF), SO_INCOMING_CPU",
        "",
        "the kernel chooses; of the programs it tells nobody",
    ),
    refused("eBPF filter", "socket-filter", ""),
    refused("SCTP and other protocols", "socket-protocol", ""),
    refused("AF_VSOCK, AF_ALG, AF_XDP and other families", "socket-family", ""),
];

/// Memory and System V IPC.
const MEMORY: &[Row] = &[
    restored(
        "private and shared anonymous memory, heap, stacks",
        "protections, names, guards, zero pages are not stored",
    ),
    restored(
        "pages that parent and child have in common (copy-on-write)",
        "of anonymous memory; not of mapped files",
    ),
    restored("mapped files, private and shared", "also deleted ones"),
    restored("executables and libraries", "kept with the checkpoint, so that an upgrade does not matter"),
    restored(
        "madvise, mlock, mlockall, mseal, MAP_DROPPABLE",
        "MCL_FUTURE where all is locked: of one without MCL_CURRENT the kernel does not tell",
    ),
    reset("guards (MADV_GUARD_INSTALL) in shared memory", "", "not kept"),
    restored("memfd, System V segments, /dev/shm", "shared as they were"),
    restored("vDSO", "that of the kernel that runs"),
    restored("System V semaphores", "values, waiting processes, what is to be undone (SEM_UNDO)"),
    refused(
        "SEM_UNDO of processes that undo together (CLONE_SYSVSEM)",
        "semaphore-undo",
        "threads of one process do, and are restored",
    ),
    restored("System V message queue", "id, key, owner, limit, messages, waiting processes"),
    restored("System V segment that nobody is attached to", ""),
    restored(
        "huge pages (hugetlbfs): private, shared anonymous, memfd",
        "out of the pool of the machine that restores (vm.nr_hugepages)",
    ),
    refused(
        "huge pages of System V segments, of unlinked files, and private mappings of a memfd of them",
        "hugetlb-shared",
        "",
    ),
    refused("memfd_secret", "secret-memory", ""),
    refused("shadow stack", "shadow-stack", ""),
    refused("protection key", "protection-key", ""),
    refused("MAP_SYNC", "dax", ""),
    refused("memory of a device", "device-mapping", ""),
    restored(
        "contexts of kernel AIO (io_setup(2))",
        "with events that were not read, and threads that wait for some; the memory of a ring that a child of fork(2) has inherited",
    ),
    refused(
        "kernel AIO with requests that do not complete, or that the preload library does not see",
        "aio",
        "IOCB_CMD_POLL, for example; contexts of static programs, or made before the group was enabled",
    ),
    refused("mapping of any other kind", "special-mapping", ""),
];

/// Processes and threads.
const PROCESSES: &[Row] = &[
    restored(
        "thread group leader that ended before other threads",
        "status, name and credentials; not its own parent-death signal, which nobody can read any more",
    ),
    restored(
        "user namespace of the unit (PrivateUsers=)",
        "with the capabilities in it; as systemd makes it",
    ),
    refused("user namespaces that a service made itself", "namespace", ""),
    restored(
        "processes that another command of the unit left (ExecStartPost=, ExecReload=), for which systemd made mount, host name and user namespaces anew",
        "in the namespaces of the main process, where both show the same",
    ),
    reset(
        "what a service has mounted itself in the mount namespace of its unit",
        "not-quite-restored",
        "lost; the restore tells what",
    ),
    restored(
        "PR_SET_MDWE, PR_SET_MEMORY_MERGE, PR_SET_IO_FLUSHER, PR_SET_SPECULATION_CTRL, PR_SET_TSC, PR_SET_THP_DISABLE, PR_TIMER_CREATE_RESTORE_IDS",
        "",
    ),
    restored("membarrier(2) registrations", "told since Linux 6.3"),
    restored("set_mempolicy(2)", "of threads; a policy of some memory alone (mbind) is not kept"),
    restored("permission for AMX tiles, faulting of CPUID", "arch_prctl(2)"),
    restored("Syscall User Dispatch", ""),
    restored("nice value of a session's automatic group", "/proc/PID/autogroup"),
    refused(
        "thread and process keyrings",
        "keyring",
        "told by the checkpoint itself; session keyrings are not kept",
    ),
    refused("segments of modify_ldt(2)", "ldt", "told by the checkpoint itself"),
    refused("core scheduling (PR_SCHED_CORE)", "core-scheduling", "told by the checkpoint itself"),
    reset("i/o context that processes share (CLONE_IO)", "", "each has its own, with its priority"),
    reset("PR_SET_PTRACER, PR_FUTEX_HASH, i/o ports, utilization clamps", "", "not kept"),
    reset(
        "time on the CPU and other use of resources",
        "",
        "clocks of CPU time, times(2) and getrusage(2) begin anew; what is left of timers and limits by them is kept",
    ),
    reset(
        "child that another thread than the first has made",
        "",
        "is the first's: which thread __WNOTHREAD and the parent-death signal go by",
    ),
    reset("child whose going on after a stop was not waited for (WCONTINUED)", "", "not told any more"),
    reset("overruns of a POSIX timer whose signal waits", "", "counted anew (timer_getoverrun)"),
    restored(
        "call that a checkpoint meets in its middle: a large write, MSG_WAITALL, many messages",
        "goes on with the rest; without the preload library it returns what was done so far, also in a process that goes on",
    ),
    restored(
        "cgroups that a service made below its own (Delegate=)",
        "with the processes in them; not their settings, and not empty ones",
    ),
    refused("cgroups of single threads", "cgroup-threaded", ""),
    refused(
        "parent that waits in vfork(2)",
        "vfork",
        "while its child has executed no program and not ended",
    ),
    restored(
        "time limit of select, pselect, ppoll, of nanosleep that tells the rest, of all calls with an absolute time",
        "the rest of it",
    ),
    restored(
        "time limit of poll, epoll_wait, semtimedop, sigtimedwait, nanosleep, futex with a relative time, io_getevents",
        "the rest of it; begins anew where the kernel does not tell when a thread fell asleep (no /proc/PID/sched)",
    ),
    restored(
        "time limit of a socket: SO_RCVTIMEO, SO_SNDTIMEO",
        "the rest of it, with the preload library; of connect(2) it begins anew",
    ),
];

/// The parts of the table, with their titles.
pub const TABLE: [(&str, &[Row]); 5] = [
    ("Processes and threads", PROCESSES),
    ("Files and terminals", FILES),
    ("Descriptors of other kinds", OBJECTS),
    ("Sockets", SOCKETS),
    ("Memory and System V IPC", MEMORY),
];

/// The table as mdoc(7).
pub fn mdoc() -> String {
    let mut text = String::new();
    for (title, rows) in TABLE {
        let _ = writeln!(text, ".Ss {title}\n.Bl -tag -width Ds");
        for row in rows {
            let fate = match row.fate {
                Fate::Restored => "Restored".to_owned(),
                Fate::Reset("") => "Reset".to_owned(),
                Fate::Reset(code) => format!("Reset, told as\n.Cm {code}"),
                Fate::Refused(code) => format!("Refused:\n.Cm {code}"),
            };
            let _ = match row.note {
                "" => writeln!(text, ".It {}\n{fate}", row.kind),
                note => writeln!(text, ".It {}\n{fate}\n.br\n{note}.", row.kind),
            };
        }
        text.push_str(".El\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_shipped_page_has_the_table() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../man/ckpt-support.7");
        let page = std::fs::read_to_string(page).unwrap();
        assert!(page.contains(&mdoc()), "man/ckpt-support.7 differs from ckptd --print-support:\n{}", mdoc());
    }

    /// Every code of the table is one that the code gives somewhere.
    #[test]
    fn every_code_is_one_of_the_code() {
        let mut sources = String::new();
        let mut places = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(place) = places.pop() {
            for entry in std::fs::read_dir(place).unwrap().flatten() {
                let path = entry.path();
                match path.is_dir() {
                    true => places.push(path),
                    false if path.ends_with("support.rs") => {}
                    false => sources.push_str(&std::fs::read_to_string(path).unwrap()),
                }
            }
        }
        for row in TABLE.iter().flat_map(|(_, rows)| *rows) {
            let (Fate::Reset(code) | Fate::Refused(code)) = row.fate else { continue };
            assert!(
                code.is_empty() || sources.contains(&format!("\"{code}\"")),
                "{code} is nowhere in the code"
            );
        }
    }
}
