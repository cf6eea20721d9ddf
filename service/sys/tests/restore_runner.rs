//! A batch runs in a stopped child: results, failure, children made inside, the last call by a single step.

use std::time::Duration;

use ckpt_sys::VirtAddr;
use ckpt_sys::batch::{Batch, Slot};
use ckpt_sys::ptrace::Options;
use ckpt_sys::runner::{self, RestoreRunner};
use ckpt_sys::thread::{Care, Deadline, Running, Stop, Stopped};
use nix::errno::Errno;
use nix::unistd::Pid;

const SLOT: u64 = 16384;

/// Code page, then two slots, mapped here so that a forked child has them too.
fn map_runner() -> VirtAddr {
    let len = (4096 + 2 * SLOT) as usize;
    // SAFETY: a fresh anonymous mapping, written only where it lies, then its first page made executable.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(runner::code().as_ptr(), at.cast(), runner::code().len());
        assert_eq!(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
        VirtAddr(at as u64)
    }
}

fn slot(base: VirtAddr, n: u64) -> Slot {
    Slot { base: base.add(4096 + n * SLOT), len: SLOT }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

/// A child that does nothing, stopped and to be killed.
fn stopped_child() -> Stopped {
    // SAFETY: the child makes only async-signal-safe calls.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        loop {
            // SAFETY: no arguments.
            unsafe { libc::pause() };
        }
    }
    let options = Options::EXITKILL | Options::TRACE_CHILDREN;
    let running = Running::seize(Pid::from_raw(pid), options).unwrap();
    let mut stopped = running.stop(soon()).unwrap().stopped(Pid::from_raw(pid)).unwrap();
    stopped.set_care(Care::Kill);
    stopped
}

#[test]
fn batch_runs_and_tells_results() {
    let base = map_runner();
    let child = stopped_child();
    let pid = child.tid();
    let runner = RestoreRunner::new(base, slot(base, 0));

    let mut batch = Batch::new(runner.slot());
    let getpid = batch.push(libc::SYS_getpid, [0; 6]);
    let wants = 0x7000_0000_u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let map = batch.must(libc::SYS_mmap, [wants, 4096, 3, flags, u64::MAX, 0]);
    let name = batch.c_str(b"renamed");
    batch.must(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name.0, 0, 0, 0, 0]);
    let back = batch.space(16);
    batch.must(libc::SYS_prctl, [libc::PR_GET_NAME as u64, back.0, 0, 0, 0, 0]);
    let close = batch.push(libc::SYS_close, [9999, 0, 0, 0, 0, 0]);
    let ran = runner.run(child, &batch, soon()).unwrap();
    let outcome = ran.outcome;
    assert_eq!(outcome.result(getpid), Ok(pid.as_raw() as u64));
    assert_eq!(outcome.result(map), Ok(wants));
    assert_eq!(outcome.result(close), Err(Errno::EBADF));
    assert_eq!(outcome.bytes(back, 7), b"renamed");
    assert!(outcome.failed.is_none());

    let mut batch = Batch::new(runner.slot());
    batch.push(libc::SYS_getpid, [0; 6]);
    batch.must(libc::SYS_close, [9999, 0, 0, 0, 0, 0]);
    let never = batch.push(libc::SYS_getpid, [0; 6]);
    let ran = runner.run(ran.thread, &batch, soon()).unwrap();
    assert_eq!(ran.outcome.failed.map(|f| (f.index, f.errno)), Some((1, Errno::EBADF)));
    assert_eq!(ran.outcome.result(never), Err(Errno::ECANCELED));
}

#[test]
fn children_made_inside_are_given_back_stopped_and_run_batches_themselves() {
    let base = map_runner();
    let child = stopped_child();
    let leader = child.tid();
    let runner = RestoreRunner::new(base, slot(base, 0));

    let thread_flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let mut batch = Batch::new(runner.slot());
    let clone_args = |flags: u64, exit_signal: u64| {
        let words = [flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, 0];
        words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>()
    };
    let thread_args = batch.data(&clone_args(thread_flags as u64, 0));
    let thread = batch.must(libc::SYS_clone3, [thread_args.0, 88, 0, 0, 0, 0]);
    let process_args = batch.data(&clone_args(0, libc::SIGCHLD as u64));
    let process = batch.must(libc::SYS_clone3, [process_args.0, 88, 0, 0, 0, 0]);
    let last = batch.push(libc::SYS_gettid, [0; 6]);
    let ran = runner.run(child, &batch, soon()).unwrap();
    assert_eq!(ran.outcome.result(last), Ok(leader.as_raw() as u64));
    let made: Vec<u64> = [thread, process].map(|c| ran.outcome.result(c).unwrap()).to_vec();
    assert_eq!(made, ran.children.iter().map(|p| p.as_raw() as u64).collect::<Vec<_>>());

    for (tid, is_thread) in ran.children.iter().zip([true, false]) {
        let stopped = Running::adopt(*tid, Care::Kill).wait(soon()).unwrap().stopped(*tid).unwrap();
        assert_eq!(stopped.reason(), Stop::Interrupted);
        let own = RestoreRunner::new(base, slot(base, 1));
        let mut batch = Batch::new(own.slot());
        let gettid = batch.push(libc::SYS_gettid, [0; 6]);
        let getpid = batch.push(libc::SYS_getpid, [0; 6]);
        let ran = own.run(stopped, &batch, soon()).unwrap();
        assert_eq!(ran.outcome.result(gettid), Ok(tid.as_raw() as u64));
        let pid = if is_thread { leader } else { *tid };
        assert_eq!(ran.outcome.result(getpid), Ok(pid.as_raw() as u64));
        // A thread dies with its process, which the leader's handle ends.
        if is_thread {
            std::mem::forget(ran.thread);
        }
    }
}

#[test]
fn the_last_call_can_unmap_the_runner() {
    let base = map_runner();
    let child = stopped_child();
    let pid = child.tid();
    // Any syscall instruction outside the runner will do: that of the vDSO, which the child has where we have it.
    let (_, distance) = ckpt_sys::nursery::vdso().unwrap();
    // SAFETY: no pointers.
    let instruction = VirtAddr(unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } + distance);
    let (child, ret) = runner::step_call(
        child,
        instruction,
        libc::SYS_munmap,
        [base.0, 4096 + 2 * SLOT, 0, 0, 0, 0],
        soon(),
    )
    .unwrap();
    assert_eq!(ret, 0);
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(!maps.contains(&format!("{:x}-", base.0)));
    assert_eq!(child.registers().unwrap().rip, instruction.0 + 2);
}

#[test]
fn a_killed_child_is_an_error_not_a_hang() {
    let base = map_runner();
    let child = stopped_child();
    let runner = RestoreRunner::new(base, slot(base, 0));
    let mut batch = Batch::new(runner.slot());
    batch.push(libc::SYS_exit_group, [3, 0, 0, 0, 0, 0]);
    let (thread, error) = runner.run(child, &batch, soon()).unwrap_err();
    assert!(thread.is_none());
    assert!(matches!(error, ckpt_sys::Error::Gone(_)), "{error}");
}
