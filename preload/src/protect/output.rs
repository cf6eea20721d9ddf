//! What a system call of x86-64 writes to, told by its arguments.
use super::{pass, pins::Pins};

/// Where a call writes.
#[derive(Clone, Copy)]
enum Out {
    /// Argument n points to this many bytes.
    Fixed(usize, usize),
    /// Argument n points to as many bytes as argument m says.
    Length(usize, usize),
    /// Argument n points to as many elements as argument m says, of this size.
    Count(usize, usize, usize),
    /// Argument n points to as many bytes as the int says that argument m points to; that is written too.
    Told(usize, usize),
    /// Argument n points to as many struct iovec as argument m says.
    Parts(usize, usize),
    /// Argument n points to a struct msghdr.
    Message(usize),
    /// Argument n points to as many struct mmsghdr as argument m says.
    Messages(usize, usize),
    /// Argument n points to an fd_set for as many descriptors as argument 0 says.
    Set(usize),
}

use Out::{Count, Fixed, Length, Message, Messages, Parts, Set, Told};

/// Calls that write to nothing, as bits by number.
const QUIET: [u64; 8] = {
    let mut bits = [0u64; 8];
    let list: &[(usize, usize)] = &[
        (1, 3),
        (8, 8),
        (18, 18),
        (20, 21),
        (24, 24),
        (26, 26),
        (29, 29),
        (32, 34),
        (37, 37),
        (39, 39),
        (41, 42),
        (44, 44),
        (46, 46),
        (48, 50),
        (54, 54),
        (62, 62),
        (64, 65),
        (68, 69),
        (73, 77),
        (80, 88),
        (90, 95),
        (102, 102),
        (104, 114),
        (116, 117),
        (119, 119),
        (121, 124),
        (126, 126),
        (129, 129),
        (132, 133),
        (135, 135),
        (140, 142),
        (144, 147),
        (149, 153),
        (155, 155),
        (160, 168),
        (170, 171),
        (186, 190),
        (197, 200),
        (203, 203),
        (213, 213),
        (219, 221),
        (225, 227),
        (231, 231),
        (233, 235),
        (237, 238),
        (240, 242),
        (244, 244),
        (248, 249),
        (251, 255),
        (257, 261),
        (263, 266),
        (268, 269),
        (272, 272),
        (276, 277),
        (280, 280),
        (282, 285),
        (289, 292),
        (294, 294),
        (296, 297),
        (300, 301),
        (304, 304),
        (306, 306),
        (308, 308),
        (312, 312),
        (314, 314),
        (316, 316),
        (319, 319),
        (324, 325),
        (328, 328),
        (330, 331),
        (424, 424),
        (428, 434),
        (436, 440),
        (442, 442),
        (444, 446),
        (448, 448),
        (450, 450),
        (452, 452),
    ];
    let mut n = 0;
    while n < list.len() {
        let mut nr = list[n].0;
        while nr <= list[n].1 {
            bits[nr / 64] |= 1 << (nr % 64);
            nr += 1;
        }
        n += 1;
    }
    bits
};

/// Whether a call writes to no memory of its caller.
pub fn is_quiet(number: i64) -> bool {
    // process_madvise(2) is among the numbers that are not.
    (0..512).contains(&number) && number != 440 && QUIET[number as usize / 64] & (1 << (number % 64)) != 0
}

/// The places that a call writes to; `None` for a call that is not known.
fn outputs(number: i64) -> Option<&'static [Out]> {
    const STAT: usize = 144;
    const PAGE: usize = 4096;
    Some(match number {
        0 | 17 | 45 | 103 | 217 | 78 | 89 | 318 | 79 | 70 | 243 => match number {
            45 => &[Length(1, 2), Told(4, 5)],
            318 | 79 => &[Length(0, 1)],
            70 => &[Length(1, 2), Fixed(1, 8)],
            243 => &[Length(1, 2), Fixed(3, 4)],
            _ => &[Length(1, 2)],
        },
        4..=6 => &[Fixed(1, STAT)],
        7 => &[Count(0, 1, 8)],
        19 | 278 | 295 | 310 | 327 => &[Parts(1, 2)],
        22 | 293 => &[Fixed(0, 8)],
        23 | 270 => &[Set(1), Set(2), Set(3), Fixed(4, 16)],
        27 => &[Length(2, 1)],
        31 | 71 => &[Fixed(2, 256)],
        35 => &[Fixed(1, 16)],
        36 => &[Fixed(1, 32)],
        38 => &[Fixed(2, 32)],
        40 => &[Fixed(2, 8)],
        43 | 288 | 51 | 52 => &[Told(1, 2)],
        47 => &[Message(1)],
        53 => &[Fixed(3, 8)],
        55 => &[Told(3, 4)],
        61 => &[Fixed(1, 4), Fixed(3, STAT)],
        63 => &[Fixed(0, 390)],
        66 => &[Fixed(3, 1 << 16)],
        72 => &[Fixed(2, 64)],
        96 => &[Fixed(0, 16), Fixed(1, 8)],
        97 => &[Fixed(1, 16)],
        98 => &[Fixed(1, STAT)],
        99 => &[Fixed(0, 128)],
        100 => &[Fixed(0, 32)],
        115 => &[Count(1, 0, 4)],
        118 | 120 => &[Fixed(0, 4), Fixed(1, 4), Fixed(2, 4)],
        125 => &[Fixed(0, 8), Fixed(1, 24)],
        127 => &[Fixed(0, 8)],
        128 => &[Fixed(1, 128)],
        130 => &[],
        136 => &[Fixed(1, 32)],
        137 | 138 => &[Fixed(1, 120)],
        143 => &[Fixed(1, 4)],
        148 => &[Fixed(1, 16)],
        157 => &[Fixed(1, PAGE), Fixed(2, PAGE)],
        159 => &[Fixed(0, 208)],
        191..=193 => &[Length(2, 3)],
        194..=196 => &[Length(1, 2)],
        201 => &[Fixed(0, 8)],
        202 => &[Fixed(0, 4), Fixed(4, 4)],
        204 => &[Length(2, 1)],
        222 => &[Fixed(2, 4)],
        223 | 286 => &[Fixed(3, 32)],
        224 | 287 => &[Fixed(1, 32)],
        228 | 229 => &[Fixed(1, 16)],
        230 => &[Fixed(3, 16)],
        232 | 281 | 441 => &[Count(1, 2, 12)],
        239 => &[Fixed(0, 4), Fixed(1, PAGE)],
        245 => &[Fixed(2, 64)],
        247 => &[Fixed(2, 128), Fixed(4, STAT)],
        262 => &[Fixed(2, STAT)],
        267 => &[Length(2, 3)],
        271 => &[Count(0, 1, 8), Fixed(2, 16)],
        274 => &[Fixed(1, 8), Fixed(2, 8)],
        275 | 326 => &[Fixed(1, 8), Fixed(3, 8)],
        279 => &[Count(4, 1, 4)],
        299 => &[Messages(1, 2), Fixed(4, 16)],
        302 => &[Fixed(3, 16)],
        303 => &[Fixed(2, 256), Fixed(3, 8)],
        305 => &[Fixed(1, 208)],
        307 => &[Count(1, 2, 64)],
        309 => &[Fixed(0, 4), Fixed(1, 4), Fixed(2, 128)],
        315 => &[Length(1, 2)],
        332 => &[Fixed(4, 256)],
        451 => &[Fixed(2, 40)],
        454 | 455 => &[Fixed(0, 4)],
        _ => return None,
    })
}

/// Opens and pins what a call writes to. False for a call that is not known.
pub fn pin(number: i64, args: &[usize; 6], pins: &Pins) -> bool {
    if number == libc::SYS_ioctl {
        return ioctl(args, pins);
    }
    if number == libc::SYS_futex && is_private_look(args[1]) {
        return true;
    }
    let Some(outputs) = outputs(number) else { return false };
    for out in outputs {
        one(*out, args, pins);
    }
    true
}

/// Whether a futex(2) operation only reads: waiting and waking among the threads of the process. One that may be shared with other
/// processes looks for the page behind the word, and takes private memory that cannot be written for a mistake (EFAULT).
fn is_private_look(operation: usize) -> bool {
    const PRIVATE: usize = libc::FUTEX_PRIVATE_FLAG as usize;
    operation & PRIVATE != 0 && matches!(operation & 0x7f, 0 | 1 | 3 | 4 | 9 | 10)
}

fn one(out: Out, args: &[usize; 6], pins: &Pins) {
    match out {
        Fixed(at, bytes) => pins.add(args[at], bytes),
        Length(at, length) => pins.add(args[at], args[length]),
        Count(at, count, size) => pins.add(args[at], (args[count] as u32 as usize).saturating_mul(size)),
        Set(at) => pins.add(args[at], (args[0] as u32 as usize).min(1 << 20).div_ceil(64) * 8),
        Told(at, length) => {
            let mut told = 0u32;
            if args[length] != 0 && pass::copy(&raw mut told as usize, args[length], 4) {
                pins.add(args[at], told as usize);
            }
            pins.add(args[length], 4);
        }
        Parts(at, count) => parts(args[at], args[count], pins),
        Message(at) => message(args[at], pins),
        Messages(at, count) => {
            pins.add(args[at], (args[count] as u32 as usize).saturating_mul(64));
            for n in 0..(args[count] as u32 as usize).min(1024) {
                message(args[at].wrapping_add(n * 64), pins);
            }
        }
    }
}

/// An array of struct iovec.
fn parts(at: usize, count: usize, pins: &Pins) {
    for n in 0..count.min(1024) {
        let mut part = [0usize; 2];
        if !pass::copy(&raw mut part as usize, at.wrapping_add(n * 16), 16) {
            return;
        }
        pins.add(part[0], part[1]);
    }
}

/// struct msghdr: name, its length, parts, their count, control data, its length, flags.
fn message(at: usize, pins: &Pins) {
    let mut header = [0usize; 7];
    if !pass::copy(&raw mut header as usize, at, 56) {
        return;
    }
    pins.add(at, 56);
    pins.add(header[0], header[1] as u32 as usize);
    pins.add(header[4], header[5]);
    parts(header[2], header[3], pins);
}

/// ioctl(2): those of terminals and sockets, and those whose number tells a size and that nothing else hangs on.
fn ioctl(args: &[usize; 6], pins: &Pins) -> bool {
    const SIOCGIFCONF: usize = 0x8912;
    const SIOCETHTOOL: usize = 0x8946;
    const FS_IOC_FIEMAP: usize = 0xc020_660b;
    let request = args[1] as u32 as usize;
    let family = request >> 8 & 0xff;
    match request {
        SIOCGIFCONF | SIOCETHTOOL | FS_IOC_FIEMAP => false,
        _ if family == 0x54 || family == 0x89 => {
            pins.add(args[2], 256);
            true
        }
        // _IOC_NONE and _IOC_WRITE of file systems and drivers still may write through pointers in what they are given.
        _ if request >> 30 == 2 && matches!(family as u8, b'f' | b'v' | b'E') => {
            pins.add(args[2], request >> 16 & 0x3fff);
            true
        }
        // FICLONE, FICLONERANGE, BLKGETSIZE64
        0x4004_9409 | 0x4020_940d => true,
        0x8008_1272 => {
            pins.add(args[2], 8);
            true
        }
        _ => false,
    }
}
