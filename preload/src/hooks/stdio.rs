//! stdio: libc makes its system calls inside itself, so each call that can end in one stands here.
//!
//! A call that finds room in the stream's buffer, or enough read ahead, makes no system call and goes straight
//! through. What is left out (scanf, error(3), err(3), syslog(3), the flush at exit) is neither told nor gated; a
//! checkpoint is right without that.
use crate::gate::{gated, pass};
use ckpt_wire::OpCode;
use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use libc::{off_t, size_t, ssize_t};

/// The head of glibc's FILE, as its own macros compile it into programs.
#[repr(C)]
pub struct Stream {
    flags: c_int,
    read_ptr: usize,
    read_end: usize,
    read_base: usize,
    write_base: usize,
    write_ptr: usize,
    write_end: usize,
    buffer: [usize; 2],
    backup: [usize; 3],
    markers: usize,
    chain: usize,
    fileno: c_int,
}

const _: () = assert!(core::mem::offset_of!(Stream, fileno) == 0x70);

unsafe extern "C" {
    static stdout: *mut Stream;
}

/// What the gate needs to know of a stream. Read without its lock: a look that comes too early or late only tells
/// or gates a call that needed not, or the other way round.
#[derive(Clone, Copy)]
struct Look {
    fd: c_int,
    room: usize,
    ahead: usize,
}

/// # Safety
/// `stream` is null or an open stream.
unsafe fn look(stream: *const Stream) -> Look {
    if stream.is_null() {
        return Look { fd: -1, room: 0, ahead: 0 };
    }
    // SAFETY: the caller's; the fields are plain integers.
    unsafe {
        Look {
            fd: (&raw const (*stream).fileno).read_volatile(),
            room: (&raw const (*stream).write_end)
                .read_volatile()
                .saturating_sub((&raw const (*stream).write_ptr).read_volatile()),
            ahead: (&raw const (*stream).read_end)
                .read_volatile()
                .saturating_sub((&raw const (*stream).read_ptr).read_volatile()),
        }
    }
}

/// # Safety
/// `stream` is null or an open stream.
#[inline(always)]
unsafe fn writing<R>(stream: *const Stream, length: usize, call: impl FnOnce() -> R) -> R {
    // SAFETY: the caller's.
    let look = unsafe { look(stream) };
    if length <= look.room { call() } else { gated(OpCode::StdioWrite, look.fd, -1, length as u64, call) }
}

/// # Safety
/// `stream` is null or an open stream.
#[inline(always)]
unsafe fn reading<R>(stream: *const Stream, length: usize, call: impl FnOnce() -> R) -> R {
    // SAFETY: the caller's.
    let look = unsafe { look(stream) };
    if length <= look.ahead { call() } else { gated(OpCode::StdioRead, look.fd, -1, length as u64, call) }
}

/// More than any buffer has room for: always gated.
const UNKNOWN: usize = usize::MAX;

fn standard_output() -> *const Stream {
    // SAFETY: a plain read, as libc's own macros do.
    unsafe { stdout }
}

macro_rules! streams {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $way:ident($stream:expr, $length:expr);)*) => { $(
        hook_with! {
            $name($($arg: $type),*) -> $result,
            // SAFETY: the caller's promises for this call: an open stream, C strings.
            |real| unsafe { $way($stream, $length, real) }
        }
    )* };
}

type File = *mut Stream;

streams! {
    fwrite(data: *const c_void, size: size_t, count: size_t, stream: File) -> size_t
        = writing(stream, size.saturating_mul(count));
    fwrite_unlocked(data: *const c_void, size: size_t, count: size_t, stream: File) -> size_t
        = writing(stream, size.saturating_mul(count));
    fputs(text: *const c_char, stream: File) -> c_int = writing(stream, CStr::from_ptr(text).count_bytes());
    fputs_unlocked(text: *const c_char, stream: File) -> c_int = writing(stream, CStr::from_ptr(text).count_bytes());
    puts(text: *const c_char) -> c_int = writing(standard_output(), CStr::from_ptr(text).count_bytes() + 1);
    fputc(byte: c_int, stream: File) -> c_int = writing(stream, 1);
    fputc_unlocked(byte: c_int, stream: File) -> c_int = writing(stream, 1);
    putc(byte: c_int, stream: File) -> c_int = writing(stream, 1);
    putc_unlocked(byte: c_int, stream: File) -> c_int = writing(stream, 1);
    _IO_putc(byte: c_int, stream: File) -> c_int = writing(stream, 1);
    putchar(byte: c_int) -> c_int = writing(standard_output(), 1);
    putchar_unlocked(byte: c_int) -> c_int = writing(standard_output(), 1);
    putw(word: c_int, stream: File) -> c_int = writing(stream, 4);
    fputwc(character: c_int, stream: File) -> c_int = writing(stream, UNKNOWN);
    putwc(character: c_int, stream: File) -> c_int = writing(stream, UNKNOWN);
    fputws(text: *const c_int, stream: File) -> c_int = writing(stream, UNKNOWN);
    fputwc_unlocked(character: c_int, stream: File) -> c_int = writing(stream, UNKNOWN);
    putwc_unlocked(character: c_int, stream: File) -> c_int = writing(stream, UNKNOWN);
    putwchar(character: c_int) -> c_int = writing(standard_output(), UNKNOWN);
    putwchar_unlocked(character: c_int) -> c_int = writing(standard_output(), UNKNOWN);
    fputws_unlocked(text: *const c_int, stream: File) -> c_int = writing(stream, UNKNOWN);
    __overflow(stream: File, byte: c_int) -> c_int = writing(stream, UNKNOWN);

    vfprintf(stream: File, format: *const c_char, list: *mut c_void) -> c_int = writing(stream, UNKNOWN);
    vprintf(format: *const c_char, list: *mut c_void) -> c_int = writing(standard_output(), UNKNOWN);
    __vfprintf_chk(stream: File, flag: c_int, format: *const c_char, list: *mut c_void) -> c_int
        = writing(stream, UNKNOWN);
    __vprintf_chk(flag: c_int, format: *const c_char, list: *mut c_void) -> c_int
        = writing(standard_output(), UNKNOWN);

    vfwprintf(stream: File, format: *const c_int, list: *mut c_void) -> c_int = writing(stream, UNKNOWN);
    vwprintf(format: *const c_int, list: *mut c_void) -> c_int = writing(standard_output(), UNKNOWN);
    __vfwprintf_chk(stream: File, flag: c_int, format: *const c_int, list: *mut c_void) -> c_int
        = writing(stream, UNKNOWN);
    __vwprintf_chk(flag: c_int, format: *const c_int, list: *mut c_void) -> c_int
        = writing(standard_output(), UNKNOWN);

    // Moving the position writes what is buffered.
    fseek(stream: File, offset: c_long, whence: c_int) -> c_int = writing(stream, UNKNOWN);
    fseeko(stream: File, offset: off_t, whence: c_int) -> c_int = writing(stream, UNKNOWN);
    fseeko64(stream: File, offset: off_t, whence: c_int) -> c_int = writing(stream, UNKNOWN);
    fsetpos(stream: File, position: *const c_void) -> c_int = writing(stream, UNKNOWN);
    fsetpos64(stream: File, position: *const c_void) -> c_int = writing(stream, UNKNOWN);
    rewind(stream: File) -> () = writing(stream, UNKNOWN);

    fread(data: *mut c_void, size: size_t, count: size_t, stream: File) -> size_t
        = reading(stream, size.saturating_mul(count));
    fread_unlocked(data: *mut c_void, size: size_t, count: size_t, stream: File) -> size_t
        = reading(stream, size.saturating_mul(count));
    __fread_chk(data: *mut c_void, room: size_t, size: size_t, count: size_t, stream: File) -> size_t
        = reading(stream, size.saturating_mul(count));
    __fread_unlocked_chk(data: *mut c_void, room: size_t, size: size_t, count: size_t, stream: File) -> size_t
        = reading(stream, size.saturating_mul(count));
    fgets(text: *mut c_char, room: c_int, stream: File) -> *mut c_char = reading(stream, UNKNOWN);
    fgets_unlocked(text: *mut c_char, room: c_int, stream: File) -> *mut c_char = reading(stream, UNKNOWN);
    __fgets_chk(text: *mut c_char, size: size_t, room: c_int, stream: File) -> *mut c_char = reading(stream, UNKNOWN);
    __fgets_unlocked_chk(text: *mut c_char, size: size_t, room: c_int, stream: File) -> *mut c_char
        = reading(stream, UNKNOWN);
    fgetc(stream: File) -> c_int = reading(stream, 1);
    getc(stream: File) -> c_int = reading(stream, 1);
    fgetc_unlocked(stream: File) -> c_int = reading(stream, 1);
    getc_unlocked(stream: File) -> c_int = reading(stream, 1);
    _IO_getc(stream: File) -> c_int = reading(stream, 1);
    __uflow(stream: File) -> c_int = reading(stream, UNKNOWN);
    __underflow(stream: File) -> c_int = reading(stream, UNKNOWN);
    getline(line: *mut *mut c_char, room: *mut size_t, stream: File) -> ssize_t = reading(stream, UNKNOWN);
    getdelim(line: *mut *mut c_char, room: *mut size_t, end: c_int, stream: File) -> ssize_t
        = reading(stream, UNKNOWN);
    __getdelim(line: *mut *mut c_char, room: *mut size_t, end: c_int, stream: File) -> ssize_t
        = reading(stream, UNKNOWN);
}

macro_rules! flushes {
    ($($name:ident = $code:ident)*) => { $(
        hook_with! {
            $name(stream: File) -> c_int,
            |real| {
                if stream.is_null() {
                    // All streams.
                    return gated(OpCode::Sync, -1, -1, 0, real);
                }
                // SAFETY: the caller's promise: an open stream.
                let fd = unsafe { look(stream) }.fd;
                gated(OpCode::$code, fd, -1, 0, real)
            }
        }
    )* };
}

flushes! { fflush = StdioWrite fflush_unlocked = StdioWrite fclose = StdioClose }

hooks! {
    fopen(path: *const c_char, mode: *const c_char) -> File = StdioOpen(-1, -1, 0);
    fopen64(path: *const c_char, mode: *const c_char) -> File = StdioOpen(-1, -1, 0);
    freopen(path: *const c_char, mode: *const c_char, stream: File) -> File = StdioOpen(-1, -1, 0);
    freopen64(path: *const c_char, mode: *const c_char, stream: File) -> File = StdioOpen(-1, -1, 0);
    tmpfile() -> File = StdioOpen(-1, -1, 0);
    tmpfile64() -> File = StdioOpen(-1, -1, 0);
    fcloseall() -> c_int = Sync(-1, -1, 0);
    perror(text: *const c_char) -> () = Write(2, -1, 0);
    vdprintf(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int = Write(fd, -1, 0);
    __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, list: *mut c_void) -> c_int = Write(fd, -1, 0);
}

hook_with! {
    // The buffers are written on the way out: not while the gate is closed.
    exit(status: c_int) -> (),
    |real| {
        pass();
        real()
    }
}

/// Defines a variadic function by its twin that takes a va_list: the arguments that came in registers are saved as
/// the x86-64 psABI's va_start does it (176 bytes: six integers, eight vectors), and the list is passed behind the
/// `fixed` named arguments.
macro_rules! variadic {
    ($($name:ident => $twin:ident, $fixed:literal, $register:literal;)*) => { $(
        /// Stands before libc's function of this name.
        ///
        /// # Safety
        /// As for libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 216",
                ".cfi_adjust_cfa_offset 216",
                "mov [rsp + 32], rdi",
                "mov [rsp + 40], rsi",
                "mov [rsp + 48], rdx",
                "mov [rsp + 56], rcx",
                "mov [rsp + 64], r8",
                "mov [rsp + 72], r9",
                "test al, al",
                "je 2f",
                "movaps [rsp + 80], xmm0",
                "movaps [rsp + 96], xmm1",
                "movaps [rsp + 112], xmm2",
                "movaps [rsp + 128], xmm3",
                "movaps [rsp + 144], xmm4",
                "movaps [rsp + 160], xmm5",
                "movaps [rsp + 176], xmm6",
                "movaps [rsp + 192], xmm7",
                "2: mov dword ptr [rsp], 8 * {fixed}",
                "mov dword ptr [rsp + 4], 48",
                "lea rax, [rsp + 224]",
                "mov [rsp + 8], rax",
                "lea rax, [rsp + 32]",
                "mov [rsp + 16], rax",
                concat!("mov ", $register, ", rsp"),
                "call {twin}",
                "add rsp, 216",
                ".cfi_adjust_cfa_offset -216",
                "ret",
                ".cfi_endproc",
                fixed = const $fixed,
                twin = sym $twin,
            )
        }
    )* };
}

variadic! {
    printf => vprintf, 1, "rsi";
    fprintf => vfprintf, 2, "rdx";
    dprintf => vdprintf, 2, "rdx";
    __printf_chk => __vprintf_chk, 2, "rdx";
    __fprintf_chk => __vfprintf_chk, 3, "rcx";
    __dprintf_chk => __vdprintf_chk, 3, "rcx";
    wprintf => vwprintf, 1, "rsi";
    fwprintf => vfwprintf, 2, "rdx";
    __wprintf_chk => __vwprintf_chk, 2, "rdx";
    __fwprintf_chk => __vfwprintf_chk, 3, "rcx";
}
