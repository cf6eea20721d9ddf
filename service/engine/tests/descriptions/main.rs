//! A description that was captured and rebuilt tells and does what the old one did.
//!
//! Each test makes descriptors in this process, captures them, closes them and rebuilds them: no ptrace, no child. Needs root.

mod moving;
mod programs;
mod support;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use ckpt_engine::kinds::Depth;
use ckpt_sys::descriptor::{self, make, message, socket};
use nix::libc;

use support::*;

#[test]
fn files_keep_offset_flags_locks_and_who_shares_them() {
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("files");
    let path = dir.file("log");
    std::fs::write(&path, "0123456789").unwrap();
    let reader: OwnedFd = std::fs::File::open(&path).unwrap().into();
    nix::unistd::lseek(&reader, 4, nix::unistd::Whence::SeekSet).unwrap();
    let log: OwnedFd = std::fs::OpenOptions::new().append(true).open(&path).unwrap().into();
    make::flock(log.as_fd(), libc::LOCK_EX).unwrap();
    let ofd: OwnedFd = std::fs::OpenOptions::new().write(true).read(true).open(&path).unwrap().into();
    make::ofd_lock(ofd.as_fd(), libc::F_WRLCK, 10, 5).unwrap();
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let copy = dup(&reader);
    let new = again(vec![reader, log, null, copy, ofd, std::fs::File::open(&dir.0).unwrap().into()]);
    assert!(same(new.fd(0), new.fd(3)));
    assert!(!same(new.fd(0), new.fd(1)));
    assert_eq!(read(new.fd(0)), b"456789");
    nix::unistd::write(new.fd(1), b"+").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "0123456789+");
    assert!(fdinfo(new.fd(1).as_raw_fd()).contains("FLOCK  ADVISORY  WRITE"));
    assert!(fdinfo(new.fd(4).as_raw_fd()).contains("OFDLCK ADVISORY  WRITE"));
    assert!(new.problems.iter().all(|p| p.code == "unpaired-file"), "{:?}", new.problems);
}

#[test]
fn a_file_without_a_name_keeps_its_content() {
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("unlinked");
    let path = dir.file("gone");
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let second: OwnedFd = std::fs::File::open(&path).unwrap().into();
    std::fs::remove_file(&path).unwrap();
    nix::sys::uio::pwrite(&file, b"far", 1 << 20).unwrap();
    nix::sys::uio::pwrite(&file, b"near", 0).unwrap();
    let new = again(vec![file.into(), second]);
    assert_eq!(nix::sys::stat::fstat(new.fd(0)).unwrap().st_size, (1 << 20) + 3);
    assert_eq!(nix::sys::stat::fstat(new.fd(0)).unwrap().st_nlink, 0);
    nix::sys::uio::pwrite(new.fd(0), b"N", 0).unwrap();
    let mut bytes = [0; 4];
    nix::sys::uio::pread(new.fd(1), &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"Near");
    assert!(std::fs::read_dir(&dir.0).unwrap().next().is_none());
}

#[test]
fn pipes_keep_what_lies_in_them() {
    use nix::fcntl::OFlag;
    let Some(_alone) = alone() else { return };
    let (r, w) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    make::set_pipe_capacity(w.as_fd(), 1 << 18).unwrap();
    nix::unistd::write(&w, &[7; 100_000]).unwrap();
    let (packets, into) = nix::unistd::pipe2(OFlag::O_DIRECT | OFlag::O_NONBLOCK).unwrap();
    nix::unistd::write(&into, b"one").unwrap();
    nix::unistd::write(&into, b"two").unwrap();
    let (rest, gone) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&gone, b"rest").unwrap();
    drop(gone);
    let (gone, broken) = nix::unistd::pipe().unwrap();
    drop(gone);
    let new = again(vec![r, w, packets, into, rest, broken]);
    assert!(new.problems.is_empty(), "{:?}", new.problems);
    assert_eq!(read(new.fd(0)), vec![7; 100_000]);
    assert_eq!(make::pipe_capacity(new.fd(1)), Ok(1 << 18));
    nix::unistd::write(new.fd(1), b"more").unwrap();
    assert_eq!(read(new.fd(0)), b"more");
    assert_eq!(read(new.fd(2)), b"one");
    assert_eq!(read(new.fd(2)), b"two");
    assert_eq!(nix::unistd::read(new.fd(2), &mut [0; 9]), Err(nix::errno::Errno::EAGAIN));
    nix::unistd::write(new.fd(3), b"a").unwrap();
    nix::unistd::write(new.fd(3), b"b").unwrap();
    assert_eq!(read(new.fd(2)), b"a");
    assert_eq!(read(new.fd(4)), b"rest");
    assert_eq!(read(new.fd(4)), b"");
    assert_eq!(socket::ready(new.fd(5), 0).unwrap() & libc::POLLERR, libc::POLLERR);
}

#[test]
fn a_fifo_is_opened_by_its_path_and_keeps_its_content() {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("fifo");
    let path = dir.file("fifo");
    nix::unistd::mkfifo(&path, Mode::from_bits_retain(0o600)).unwrap();
    let r = open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
    let w = open(&path, OFlag::O_WRONLY, Mode::empty()).unwrap();
    nix::unistd::write(&w, b"content").unwrap();
    let new = again(vec![r, w]);
    assert_eq!(read(new.fd(0)), b"content");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", new.fd(1).as_raw_fd())).unwrap();
    assert_eq!(link, path);
    assert_eq!(make::status(new.fd(1)).unwrap() & libc::O_NONBLOCK as u32, 0);
}

#[test]
fn counters_timers_and_signal_masks_go_on() {
    let Some(_alone) = alone() else { return };
    let event = make::eventfd(42, false).unwrap();
    let semaphore = make::eventfd(3, true).unwrap();
    let timer = make::timerfd(libc::CLOCK_MONOTONIC).unwrap();
    make::timerfd_set(timer.as_fd(), 0, 3_600_000_000_000, 5_000_000_000).unwrap();
    let expired = make::timerfd(libc::CLOCK_BOOTTIME).unwrap();
    make::timerfd_set(expired.as_fd(), 0, 1, 0).unwrap();
    while socket::ready(expired.as_fd(), libc::POLLIN).unwrap() == 0 {}
    let signals = make::signalfd(0x206).unwrap();
    let new = again(vec![event, semaphore, timer, expired, signals]);
    assert_eq!(read(new.fd(0)), 42u64.to_ne_bytes());
    assert_eq!(read(new.fd(1)), 1u64.to_ne_bytes());
    let text = fdinfo(new.fd(2).as_raw_fd());
    let info = descriptor::fdinfo::parse(&text).unwrap().timer.unwrap();
    assert!(info.value > 3_590_000_000_000 && info.value <= 3_600_000_000_000, "{info:?}");
    assert_eq!((info.interval, info.clock), (5_000_000_000, libc::CLOCK_MONOTONIC));
    assert_eq!(socket::ready(new.fd(3), libc::POLLIN), Ok(libc::POLLIN));
    assert_eq!(read(new.fd(3)), 1u64.to_ne_bytes());
    assert!(fdinfo(new.fd(4).as_raw_fd()).contains("sigmask:\t0000000000000206"));
}

/// Items of an epoll instance: number, events, data.
type Interest = Vec<(i32, u32, u64)>;

/// The interest list, sorted, without what the kernel numbers anew.
fn interest(path: &str) -> Interest {
    let info = descriptor::fdinfo::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut items: Vec<_> = info.epoll.iter().map(|item| (item.fd, item.events, item.data)).collect();
    items.sort_unstable();
    items
}

#[test]
fn an_epoll_instance_watches_the_same_numbers() {
    let Some(_alone) = alone() else { return };
    let epoll = make::epoll().unwrap();
    let nested = make::epoll().unwrap();
    let quiet = make::eventfd(0, false).unwrap();
    let ready = make::eventfd(1, false).unwrap();
    let fired = make::eventfd(1, false).unwrap();
    let (epollin, edge, oneshot) = (libc::EPOLLIN as u32, libc::EPOLLET as u32, libc::EPOLLONESHOT as u32);
    make::epoll_add(nested.as_fd(), quiet.as_raw_fd(), epollin | edge, 11).unwrap();
    make::epoll_add(epoll.as_fd(), nested.as_raw_fd(), epollin, 12).unwrap();
    make::epoll_add(epoll.as_fd(), fired.as_raw_fd(), epollin | oneshot, 14).unwrap();
    assert_eq!(make::epoll_take(epoll.as_fd()).unwrap().map(|e| e.1), Some(14));
    make::epoll_add(epoll.as_fd(), ready.as_raw_fd(), epollin, u64::MAX).unwrap();
    let list = |fd: RawFd| interest(&format!("/proc/self/fdinfo/{fd}"));
    let before = (list(epoll.as_raw_fd()), list(nested.as_raw_fd()));
    let new = again(vec![epoll, nested, quiet, ready, fired]);
    let after = (list(new.fd(0).as_raw_fd()), list(new.fd(1).as_raw_fd()));
    assert_eq!(after, before);
    assert_eq!(make::epoll_take(new.fd(0)), Ok(Some((epollin, u64::MAX))));
    read(new.fd(3));
    assert_eq!(make::epoll_take(new.fd(0)), Ok(None), "the one-shot item had fired");
    nix::unistd::write(new.fd(2), &1u64.to_ne_bytes()).unwrap();
    assert_eq!(make::epoll_take(new.fd(0)), Ok(Some((epollin, 12))));
    assert_eq!(make::epoll_take(new.fd(1)), Ok(Some((epollin, 11))));
}

#[test]
fn socket_pairs_keep_their_queues_and_descriptors_in_flight() {
    let Some(_alone) = alone() else { return };
    let (a, b) = socket::pair(libc::SOCK_STREAM).unwrap();
    let (r, w) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&a, b"before").unwrap();
    message::send(a.as_fd(), b"with", &[], &[w.as_fd()], None).unwrap();
    drop(w);
    nix::unistd::write(&a, b"after").unwrap();
    socket::shutdown(a.as_fd(), libc::SHUT_WR).unwrap();
    let (c, d) = socket::pair(libc::SOCK_SEQPACKET).unwrap();
    for packet in ["one", "two"] {
        nix::unistd::write(&c, packet.as_bytes()).unwrap();
    }
    let (e, f) = socket::pair(libc::SOCK_DGRAM).unwrap();
    nix::unistd::write(&f, b"datagram").unwrap();
    let (g, h) = socket::pair(libc::SOCK_STREAM).unwrap();
    nix::unistd::write(&h, b"last words").unwrap();
    drop(h);
    let new = again(vec![a, b, r, c, d, e, f, g]);
    assert!(new.problems.is_empty(), "{:?}", new.problems);
    assert_eq!(message::peek(new.fd(1), 6).unwrap().unwrap().data, b"before");
    assert_eq!(nix::unistd::read(new.fd(1), &mut [0; 6]), Ok(6));
    let with = message::peek(new.fd(1), 100).unwrap().unwrap();
    assert_eq!(with.data, b"with");
    nix::unistd::write(&with.rights[0], b"through the pipe").unwrap();
    assert_eq!(read(new.fd(2)), b"through the pipe");
    assert_eq!(nix::unistd::read(new.fd(1), &mut [0; 4]), Ok(4));
    assert_eq!(read(new.fd(1)), b"after");
    assert_eq!(read(new.fd(1)), b"", "the other end was shut down");
    nix::unistd::write(new.fd(1), b"back").unwrap();
    assert_eq!(read(new.fd(0)), b"back");
    assert_eq!((read(new.fd(4)), read(new.fd(4))), (b"one".to_vec(), b"two".to_vec()));
    assert_eq!(read(new.fd(5)), b"datagram");
    assert_eq!(read(new.fd(7)), b"last words");
    assert_eq!(read(new.fd(7)), b"");
}

#[test]
fn a_named_socket_listens_again_and_keeps_its_connections() {
    use std::os::unix::fs::MetadataExt;
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("listener");
    let path = dir.file("sock");
    let listener = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
    socket::bind(listener.as_fd(), &address(&path)).unwrap();
    socket::listen(listener.as_fd(), 77).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
    let client = || {
        let client = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        socket::connect(client.as_fd(), &address(&path)).unwrap();
        client
    };
    let (first, waiting) = (client(), client());
    let accepted = socket::accept(listener.as_fd()).unwrap();
    nix::unistd::write(&first, b"hello").unwrap();
    let dgram = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
    socket::bind(dgram.as_fd(), &socket::unix_address(b"\0ckpt-test-dgram").unwrap()).unwrap();
    let sender = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
    socket::connect(sender.as_fd(), &socket::name(dgram.as_fd()).unwrap()).unwrap();
    nix::unistd::write(&sender, b"to you").unwrap();
    let new = again(vec![listener, first, waiting, accepted, dgram, sender]);
    assert!(new.problems.is_empty(), "{:?}", new.problems);
    assert_eq!(read(new.fd(3)), b"hello");
    for fd in [0, 3] {
        assert_eq!(socket::name(new.fd(fd)).unwrap(), address(&path));
    }
    assert_eq!(socket::peer_name(new.fd(1)).unwrap(), address(&path));
    nix::unistd::write(new.fd(2), b"was waiting").unwrap();
    let late = socket::accept(new.fd(0)).unwrap();
    assert_eq!(read(late.as_fd()), b"was waiting");
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 7, 8));
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1);
    let outside = socket::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
    socket::connect(outside.as_fd(), &address(&path)).unwrap();
    assert_eq!(read(new.fd(4)), b"to you");
    nix::unistd::write(new.fd(5), b"again").unwrap();
    assert_eq!(read(new.fd(4)), b"again");
}

#[test]
fn peers_outside_hang_up() {
    let Some(_alone) = alone() else { return };
    let (a, outside) = socket::pair(libc::SOCK_STREAM).unwrap();
    nix::unistd::write(&outside, b"unread").unwrap();
    let new = again(vec![a]);
    assert_eq!(read(new.fd(0)), b"unread");
    assert_eq!(read(new.fd(0)), b"");
    let sent = message::send(new.fd(0), b"x", &[], &[], None);
    assert_eq!(sent, Err(nix::errno::Errno::EPIPE));
}

#[test]
fn tcp_listens_and_connections_inside_the_group_go_on() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    let Some(_alone) = alone() else { return };
    for ip in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(ip).unwrap();
        let at = listener.local_addr().unwrap();
        socket::set_int_option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        client.set_nodelay(true).unwrap();
        client.write_all(b"request").unwrap();
        let (mut server, from) = listener.accept().unwrap();
        server.write_all(&[9; 100_000]).unwrap();
        let outside = TcpListener::bind("127.0.0.1:0").unwrap();
        let to_outside = TcpStream::connect(outside.local_addr().unwrap()).unwrap();
        let new = again(vec![listener.into(), client.into(), server.into(), to_outside.into()]);
        assert!(new.problems.is_empty(), "{:?}", new.problems);
        let listener = TcpListener::from(new.fd(0).try_clone_to_owned().unwrap());
        assert_eq!(listener.local_addr().unwrap(), at);
        let mut client = TcpStream::from(new.fd(1).try_clone_to_owned().unwrap());
        let mut server = TcpStream::from(new.fd(2).try_clone_to_owned().unwrap());
        assert_eq!((server.local_addr().unwrap(), server.peer_addr().unwrap()), (at, from));
        assert!(client.nodelay().unwrap());
        let mut bytes = vec![0; 7];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, b"request");
        bytes.resize(100_000, 0);
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, vec![9; 100_000]);
        client.write_all(b"more").unwrap();
        drop(client);
        // Our own duplicate is still open: shut down what the application would have closed.
        socket::shutdown(new.fd(1), libc::SHUT_WR).unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"more");
        let ready = socket::ready(new.fd(3), libc::POLLIN).unwrap();
        assert_eq!(ready & (libc::POLLERR | libc::POLLHUP), libc::POLLERR | libc::POLLHUP);
        assert_eq!(nix::unistd::read(new.fd(3), &mut [0]), Err(nix::errno::Errno::ECONNRESET));
        let mut stranger = TcpStream::connect(at).unwrap();
        stranger.write_all(b"x").unwrap();
        listener.accept().unwrap();
    }
}

#[test]
fn data_that_is_under_way_between_tcp_ends_arrives() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    let Some(_alone) = alone() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    let mut sent = Vec::new();
    let piece: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    while let Ok(n) = client.write(&piece) {
        sent.extend_from_slice(&piece[..n]);
    }
    drop(listener);
    let new = again(vec![client.into(), server.into()]);
    let mut server = TcpStream::from(new.fd(1).try_clone_to_owned().unwrap());
    let mut received = vec![0; sent.len()];
    server.read_exact(&mut received).unwrap();
    assert!(received == sent);
    assert_ne!(make::status(new.fd(0)).unwrap() & libc::O_NONBLOCK as u32, 0);
    assert_eq!(make::status(new.fd(1)).unwrap() & libc::O_NONBLOCK as u32, 0);
}

#[test]
fn datagram_and_netlink_sockets_have_their_addresses() {
    use std::net::UdpSocket;
    let Some(_alone) = alone() else { return };
    let udp = UdpSocket::bind("[::]:0").unwrap();
    let port = udp.local_addr().unwrap().port();
    let own = UdpSocket::bind("127.0.0.1:0").unwrap();
    own.connect(own.local_addr().unwrap()).unwrap();
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
    let at = [(libc::AF_NETLINK as u32).to_ne_bytes(), 0u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat();
    socket::bind(netlink.as_fd(), &at).unwrap();
    socket::set_int_option(netlink.as_fd(), 270, 1, 7).unwrap();
    let name = socket::name(netlink.as_fd()).unwrap();
    let groups = socket::option(netlink.as_fd(), 270, 9, 64).unwrap();
    let new = again(vec![udp.into(), own.into(), netlink]);
    let udp = UdpSocket::from(new.fd(0).try_clone_to_owned().unwrap());
    assert_eq!(udp.local_addr().unwrap().port(), port);
    let own = UdpSocket::from(new.fd(1).try_clone_to_owned().unwrap());
    own.send(b"to myself").unwrap();
    let mut bytes = [0; 20];
    assert_eq!(own.recv(&mut bytes).unwrap(), 9);
    assert_eq!(socket::name(new.fd(2)).unwrap(), name);
    assert_eq!(socket::option(new.fd(2), 270, 9, 64).unwrap(), groups);
}

#[test]
fn inotify_watches_have_their_numbers() {
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("inotify");
    let inotify = make::inotify().unwrap();
    let name = std::ffi::CString::new(dir.0.as_os_str().as_encoded_bytes()).unwrap();
    for _ in 0..5 {
        let wd = make::inotify_add(inotify.as_fd(), c"/dev", libc::IN_CREATE).unwrap();
        make::inotify_remove(inotify.as_fd(), wd).unwrap();
    }
    let wd = make::inotify_add(inotify.as_fd(), &name, libc::IN_CREATE | libc::IN_DELETE).unwrap();
    let _ = nix::unistd::read(&inotify, &mut [0; 4096]);
    let new = again(vec![inotify]);
    assert!(new.problems.is_empty(), "{:?}", new.problems);
    let info = descriptor::fdinfo::parse(&fdinfo(new.fd(0).as_raw_fd())).unwrap();
    assert_eq!(info.inotify.iter().map(|w| w.wd).collect::<Vec<_>>(), [wd]);
    assert_eq!(socket::readable(new.fd(0)), Ok(0));
    std::fs::write(dir.file("x"), "").unwrap();
    assert_eq!(read(new.fd(0))[..4], wd.to_ne_bytes());
}

#[test]
fn a_pipe_whose_other_end_is_elsewhere_is_told() {
    let Some(_alone) = alone() else { return };
    let (r, w) = nix::unistd::pipe().unwrap();
    for depth in [Depth::Surface, Depth::Contents] {
        let (captured, ..) = capture(&[r.as_raw_fd()], depth);
        assert_eq!(captured.problems.iter().map(|p| p.code.as_str()).collect::<Vec<_>>(), ["pipe-outside"]);
    }
    let (a, b) = socket::pair(libc::SOCK_STREAM).unwrap();
    message::send(a.as_fd(), b"x", &[], &[w.as_fd()], None).unwrap();
    drop(w);
    for depth in [Depth::Surface, Depth::Contents] {
        let (captured, ..) = capture(&[&r, &a, &b].map(AsRawFd::as_raw_fd), depth);
        assert!(captured.problems.is_empty(), "in flight: {:?}", captured.problems);
    }
}

#[test]
fn a_file_whose_path_leads_nowhere_is_refused() {
    let Some(_alone) = alone() else { return };
    let here: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let elsewhere = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c"])
        .arg("mount -t tmpfs none /mnt && exec 9>/mnt/ckpt-file && umount -l /mnt && echo && read x")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = elsewhere else { return println!("skipped: needs unshare(1)") };
    use std::io::Read;
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let process = descriptor::open_process(child.id() as i32).unwrap();
    let file = descriptor::take(process.as_fd(), 9).unwrap();
    let (captured, ..) = capture(&[here.as_raw_fd(), file.as_raw_fd()], Depth::Surface);
    drop(child.stdin.take());
    child.wait().unwrap();
    let codes: Vec<_> = captured.problems.iter().map(|p| p.code.as_str()).collect();
    assert_eq!(codes, ["path-unreachable"], "{:?}", captured.problems);
}

#[test]
fn what_cannot_be_captured_is_refused_by_name() {
    let Some(_alone) = alone() else { return };
    let Ok(control) = std::fs::File::open("/dev/loop-control") else {
        return println!("skipped: needs /dev/loop-control");
    };
    let log: OwnedFd = std::fs::File::open("/dev/kmsg").unwrap().into();
    let control: OwnedFd = control.into();
    let numbers = [&control, &log].map(|fd| fd.as_raw_fd());
    let (captured, ..) = capture(&numbers, Depth::Surface);
    let codes: Vec<_> = captured.problems.iter().map(|p| p.code.as_str()).collect();
    assert_eq!(codes, ["device", "device"], "{:?}", captured.problems);
    for problem in &captured.problems {
        assert!(problem.object.starts_with("fd ") && !problem.text.is_empty() && !problem.remedy.is_empty());
        assert_eq!((problem.unit.as_str(), problem.pid), ("test.service", std::process::id() as i32));
    }
}
