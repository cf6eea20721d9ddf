//! Environments for new programs: whatever the application gives, the library stays in LD_PRELOAD.
use crate::{kernel, preload_value, scratch};
use core::{
    ffi::{CStr, c_char},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// A null-ended array of C strings, as execve(2) takes it.
pub type Strings = *const *const c_char;

unsafe extern "C" {
    static environ: Strings;
}

const PATH_ROOM: usize = 4096;

struct PathBuffer(core::cell::UnsafeCell<[u8; PATH_ROOM]>);
// SAFETY: written once by the constructor, before LENGTH tells that there is something to read.
unsafe impl Sync for PathBuffer {}

static PATH: PathBuffer = PathBuffer(core::cell::UnsafeCell::new([0; PATH_ROOM]));
/// The length of the path without its zero, 0 if it is not known.
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Finds out where this library was loaded from. dladdr(3)
pub fn start() {
    let mut info = core::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: info is to be written and valid as zeroes; the name is a C string of the loader.
    let name = unsafe {
        if libc::dladdr(start as *const _, info.as_mut_ptr()) == 0
            || info.assume_init_ref().dli_fname.is_null()
        {
            return;
        }
        CStr::from_ptr(info.assume_init_ref().dli_fname).to_bytes()
    };
    // SAFETY: nobody reads the buffer while LENGTH is 0, and the constructor runs once, alone.
    let buffer = unsafe { &mut *PATH.0.get() };
    let mut at = 0;
    if !name.starts_with(b"/") {
        let Some(length) = kernel::working_directory(buffer) else { return };
        buffer[length] = b'/';
        at = length + 1;
    }
    if at + name.len() + 1 > PATH_ROOM {
        return;
    }
    buffer[at..at + name.len()].copy_from_slice(name);
    buffer[at + name.len()] = 0;
    LENGTH.store(at + name.len(), Relaxed);
}

fn path() -> &'static [u8] {
    // SAFETY: not written any more once LENGTH is not 0.
    unsafe { &(&*PATH.0.get())[..LENGTH.load(Relaxed)] }
}

/// The process's own environment (environ(7)).
pub fn own() -> Strings {
    // SAFETY: a plain read, as libc itself does.
    unsafe { environ }
}

/// What an environment says of the library.
struct Survey {
    /// How many entries there are.
    count: usize,
    /// The last LD_PRELOAD entry: the one that ld.so takes.
    list: Option<&'static [u8]>,
}

/// # Safety
/// `strings` is null or a null-ended array of C strings.
unsafe fn survey(strings: Strings) -> Survey {
    let mut survey = Survey { count: 0, list: None };
    if strings.is_null() {
        return survey;
    }
    // SAFETY: the caller's promise; the walk ends at the null.
    unsafe {
        while !(*strings.add(survey.count)).is_null() {
            if let Some(list) = preload_list(*strings.add(survey.count)) {
                survey.list = Some(list);
            }
            survey.count += 1;
        }
    }
    survey
}

/// The value, if an entry is LD_PRELOAD's. Compares byte by byte: most entries differ in the first.
///
/// # Safety
/// `entry` is a C string that outlives the use of the result.
unsafe fn preload_list(entry: *const c_char) -> Option<&'static [u8]> {
    let entry = entry.cast::<u8>();
    for (at, &byte) in preload_value::PREFIX.iter().enumerate() {
        // SAFETY: no byte before was the zero, as none of the prefix is.
        if unsafe { *entry.add(at) } != byte {
            return None;
        }
    }
    // SAFETY: the prefix is there, so the string goes on to its zero.
    Some(unsafe { CStr::from_ptr(entry.add(preload_value::PREFIX.len()).cast()) }.to_bytes())
}

/// What an environment needs.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// The library is there and can be loaded, or neither.
    Nothing,
    /// The library is not there.
    Library,
    /// The library is there but cannot be loaded from the present root directory: ld.so would complain on stderr.
    Removal,
}

/// # Safety
/// As for [`survey`].
unsafe fn examine(strings: Strings) -> (Need, Survey, &'static [u8]) {
    let path = path();
    // SAFETY: the caller's.
    let survey = unsafe { survey(strings) };
    if path.is_empty() {
        return (Need::Nothing, survey, path);
    }
    let is_there = survey.list.is_some_and(|list| preload_value::names(list, path));
    // SAFETY: path() is followed by its zero.
    let need = match (is_there, unsafe { kernel::is_readable(path.as_ptr()) }) {
        (true, true) | (false, false) => Need::Nothing,
        (false, true) => Need::Library,
        (true, false) => Need::Removal,
    };
    (need, survey, path)
}

/// The environment with the library in it: `strings` itself if nothing need be done, else a copy in the thread's
/// scratch memory, good until its next use.
///
/// # Safety
/// `strings` is null or a null-ended array of C strings.
pub unsafe fn with_library(strings: Strings) -> Strings {
    // SAFETY: the caller's.
    let (need, survey, path) = unsafe { examine(strings) };
    if need == Need::Nothing {
        return strings;
    }
    let list = survey.list.unwrap_or(b"");
    let pointers = (survey.count + 2) * size_of::<*const c_char>();
    let text = preload_value::entry_length(list, path);
    let Some(block) = scratch::reserve(pointers + text) else { return strings };
    // SAFETY: the block has room for the pointers (one entry more, and the null) and the text behind them, and is
    // aligned to a page; `strings` has `count` entries; list and path lie outside the block, which is only ever
    // given out by this function.
    unsafe {
        let entry = block.add(pointers);
        let room = core::slice::from_raw_parts_mut(entry, text);
        let written = match need {
            Need::Removal => preload_value::write_entry_without(room, list, path),
            _ => preload_value::write_entry(room, list, path),
        };
        let to = block.cast::<*const c_char>();
        let mut at = 0;
        for index in 0..survey.count {
            let from = *strings.add(index);
            if preload_list(from).is_none() {
                to.add(at).write(from);
                at += 1;
            }
        }
        if written > 0 {
            to.add(at).write(entry.cast());
            at += 1;
        }
        to.add(at).write(core::ptr::null());
        to
    }
}

/// A shell command that does the same with the library in its environment, for system(3) and popen(3), which take
/// the process's own environment: `command` itself if that has the library.
///
/// # Safety
/// `command` is null or a C string.
pub unsafe fn command_with_library(command: *const c_char) -> *const c_char {
    if command.is_null() {
        return command;
    }
    // SAFETY: environ is null or a null-ended array of C strings; command is a C string.
    let ((need, survey, path), text) = unsafe { (examine(own()), CStr::from_ptr(command).to_bytes()) };
    if need != Need::Library {
        return command;
    }
    let list = survey.list.unwrap_or(b"");
    // Every byte may need four ('\''), and the words around them some more.
    let room = (text.len() + list.len() + path.len()) * 4 + 64;
    let Some(block) = scratch::reserve(room) else { return command };
    // SAFETY: the block has `room` bytes.
    let mut to = Quoted { to: unsafe { core::slice::from_raw_parts_mut(block, room) }, at: 0 };
    to.plain(b"LD_PRELOAD='");
    to.quoted(list);
    to.plain(if list.is_empty() { b"" } else { b":" });
    to.quoted(path);
    to.plain(b"' exec /bin/sh -c '");
    to.quoted(text);
    to.plain(b"'\0");
    block.cast_const().cast()
}

/// Text for the shell, written into a block.
struct Quoted<'b> {
    to: &'b mut [u8],
    at: usize,
}

impl Quoted<'_> {
    fn plain(&mut self, text: &[u8]) {
        let Some(to) = self.to.get_mut(self.at..self.at + text.len()) else { return };
        to.copy_from_slice(text);
        self.at += text.len();
    }

    fn quoted(&mut self, text: &[u8]) {
        for &byte in text {
            if byte == b'\'' { self.plain(b"'\\''") } else { self.plain(&[byte]) }
        }
    }
}
