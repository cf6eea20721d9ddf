//! What is not as a look at descriptors alone would have it: a group that runs on meanwhile, settings that were others when they mattered.

use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use ckpt_engine::kinds::Depth;
use ckpt_sys::descriptor::{make, socket};
use nix::libc;

use super::support::*;

/// A server that runs accepts and closes while it is looked at.
#[test]
fn what_an_epoll_instance_watches_may_come_and_go_while_the_group_runs() {
    let Some(_alone) = alone() else { return };
    let epoll = make::epoll().unwrap();
    let came = make::eventfd(0, false).unwrap();
    make::epoll_add(epoll.as_fd(), came.as_raw_fd(), libc::EPOLLIN as u32, 1).unwrap();
    // It came after the descriptors were listed.
    let codes = |depth, between: &mut dyn FnMut()| {
        let (captured, ..) = capture_with(&[epoll.as_raw_fd()], depth, between);
        captured.problems.into_iter().map(|p| p.code).collect::<Vec<_>>()
    };
    assert!(codes(Depth::Surface, &mut || {}).is_empty());
    assert_eq!(codes(Depth::Contents, &mut || {}), ["epoll-target"]);
    // It was closed after the interest list was read.
    let mut gone = Some(came);
    assert!(codes(Depth::Surface, &mut || drop(gone.take())).is_empty());
    // It is open elsewhere, so the item stays.
    let elsewhere = make::eventfd(0, false).unwrap();
    let number = dup(&elsewhere);
    make::epoll_add(epoll.as_fd(), number.as_raw_fd(), libc::EPOLLIN as u32, 1).unwrap();
    drop(number);
    assert_eq!(codes(Depth::Surface, &mut || {}), ["epoll-target"]);
}

/// As postfix(1) binds its services' sockets.
#[test]
fn a_relative_name_with_directories_in_it_leads_to_where_it_led() {
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("relative");
    let before = std::env::current_dir().unwrap();
    std::env::set_current_dir(&dir.0).unwrap();
    std::fs::create_dir("private").unwrap();
    std::fs::write("name", "another thing").unwrap();
    let listener = UnixListener::bind("private/name").unwrap();
    let new = again(vec![listener.into()]);
    std::env::set_current_dir(before).unwrap();
    assert_eq!(socket::unix_path(&socket::name(new.fd(0)).unwrap()), b"private/name");
    assert!(UnixStream::connect(dir.file("private/name")).is_ok());
    assert_eq!(std::fs::read(dir.file("name")).unwrap(), b"another thing");
}

/// As servers do that become daemons after bind(2).
#[test]
fn a_node_is_found_where_the_process_has_left_its_directory() {
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("left");
    let before = std::env::current_dir().unwrap();
    std::env::set_current_dir(&dir.0).unwrap();
    std::fs::create_dir("run").unwrap();
    let plain = UnixListener::bind("name").unwrap();
    let below = UnixListener::bind("run/name").unwrap();
    let gone = UnixListener::bind("gone").unwrap();
    let renamed = UnixListener::bind("run/early").unwrap();
    std::fs::rename("run/early", "run/late").unwrap();
    std::fs::remove_file("gone").unwrap();
    std::env::set_current_dir(before).unwrap();
    let new = again(vec![plain.into(), below.into(), gone.into(), renamed.into()]);
    for (nth, name) in ["name", "run/name", "gone", "run/early"].iter().enumerate() {
        assert_eq!(socket::unix_path(&socket::name(new.fd(nth)).unwrap()), name.as_bytes());
    }
    for (name, there) in
        [("name", true), ("run/name", true), ("gone", false), ("run/early", false), ("run/late", true)]
    {
        assert_eq!(UnixStream::connect(dir.file(name)).is_ok(), there, "{name}");
    }
}

#[test]
fn datagram_sockets_share_a_port_that_they_could_not_get_again() {
    let Some(_alone) = alone() else { return };
    let sockets: Vec<_> = ["127.0.0.1", "0.0.0.0", "127.0.0.2"]
        .iter()
        .scan(0, |port, at| {
            let new = socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
            socket::set_int_option(new.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
            let address = socket::name(UdpSocket::bind((*at, 0)).unwrap().as_fd()).unwrap();
            let address = [&address[..2], &u16::to_be_bytes(*port), &address[4..]].concat();
            socket::bind(new.as_fd(), &address).unwrap();
            let new = UdpSocket::from(new);
            *port = new.local_addr().unwrap().port();
            Some(new)
        })
        .collect();
    for socket in &sockets {
        socket::set_int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 0).unwrap();
    }
    let addresses: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
    assert!(UdpSocket::bind(addresses[1]).is_err());
    let new = again(sockets.into_iter().map(Into::into).collect());
    for (nth, address) in addresses.iter().enumerate() {
        let socket = UdpSocket::from(new.fd(nth).try_clone_to_owned().unwrap());
        assert_eq!(socket.local_addr().unwrap(), *address);
        assert_eq!(socket::int_option(new.fd(nth), libc::SOL_SOCKET, libc::SO_REUSEADDR), Ok(0));
    }
}
