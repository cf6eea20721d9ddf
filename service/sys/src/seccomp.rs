//! Whether seccomp filters let a system call pass: an interpreter of classic BPF (seccomp(2), bpf(4)).
//!
//! Calls are injected into a live member only if its own filters allow them: suspending the filters would kill the
//! member if the tracer died meanwhile.

/// One instruction: struct sock_filter.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// AUDIT_ARCH_X86_64.
const ARCH: u32 = 0xc000_003e;
/// SECCOMP_RET_ALLOW and SECCOMP_RET_LOG, which lets pass and writes a line.
const ALLOW: [u32; 2] = [0x7fff_0000, 0x7ffc_0000];
/// The part of a filter's answer that is the action.
const ACTION: u32 = 0xffff_0000;

/// struct seccomp_data of a call, 64 bytes.
fn data(nr: u32, args: &[u64; 6], ip: u64) -> [u8; 64] {
    let mut data = [0; 64];
    data[0..4].copy_from_slice(&nr.to_le_bytes());
    data[4..8].copy_from_slice(&ARCH.to_le_bytes());
    data[8..16].copy_from_slice(&ip.to_le_bytes());
    for (i, arg) in args.iter().enumerate() {
        data[16 + 8 * i..24 + 8 * i].copy_from_slice(&arg.to_le_bytes());
    }
    data
}

/// Whether all these filters (raw struct sock_filter) allow the call. A program that cannot be understood allows nothing.
#[must_use]
pub fn allows(filters: &[Vec<u8>], nr: libc::c_long, args: &[u64; 6], ip: u64) -> bool {
    let data = data(nr as u32, args, ip);
    filters.iter().all(|filter| run(filter, &data).is_some_and(|ret| ALLOW.contains(&(ret & ACTION))))
}

/// The instruction at a place of a program.
fn fetch(program: &[u8], at: usize) -> Option<Instruction> {
    let b = program.get(at * 8..at * 8 + 8)?;
    Some(Instruction {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    })
}

/// A program's answer; `None` if it is not one that the kernel would have taken. Jumps go forward only, so it ends.
fn run(program: &[u8], data: &[u8; 64]) -> Option<u32> {
    let (mut a, mut x, mut mem) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0;
    loop {
        let i = fetch(program, at)?;
        at += 1;
        let operand = if i.code & 0x08 != 0 { x } else { i.k };
        match i.code & 0x07 {
            0x00 => a = load(i, data, &mem)?,
            0x01 => x = load(i, data, &mem)?,
            0x02 => *mem.get_mut(i.k as usize)? = a,
            0x03 => *mem.get_mut(i.k as usize)? = x,
            0x04 => a = alu(i.code, a, operand)?,
            0x05 => {
                let jump = match i.code & 0xf0 {
                    0x00 => i.k as usize,
                    op => usize::from(if holds(op, a, operand)? { i.jt } else { i.jf }),
                };
                at = at.checked_add(jump)?;
            }
            0x06 => return Some(if i.code & 0x18 == 0x10 { a } else { i.k }),
            _ => match i.code & 0xf8 {
                0x00 => x = a,
                0x80 => a = x,
                _ => return None,
            },
        }
    }
}

/// Loads: absolute words of the data, the data's length, constants, scratch memory.
fn load(i: Instruction, data: &[u8; 64], mem: &[u32; 16]) -> Option<u32> {
    match i.code & 0xe0 {
        0x00 => Some(i.k),
        0x20 => {
            let at = i.k as usize;
            data.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
        }
        0x60 => mem.get(i.k as usize).copied(),
        0x80 => Some(64),
        _ => None,
    }
}

/// Arithmetic.
fn alu(code: u16, a: u32, b: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.checked_shl(b).unwrap_or(0),
        0x70 => a.checked_shr(b).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ b,
        _ => return None,
    })
}

/// Conditions of jumps.
fn holds(op: u16, a: u32, b: u32) -> Option<bool> {
    Some(match op {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(lines: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        lines
            .iter()
            .flat_map(|(code, jt, jf, k)| {
                let mut b = [0u8; 8];
                b[..2].copy_from_slice(&code.to_le_bytes());
                (b[2], b[3]) = (*jt, *jf);
                b[4..].copy_from_slice(&k.to_le_bytes());
                b
            })
            .collect()
    }

    /// Right architecture; forbids getpid; forbids mmap with PROT_EXEC.
    fn filter() -> Vec<u8> {
        program(&[
            (0x20, 0, 0, 4),
            (0x15, 0, 6, ARCH),
            (0x20, 0, 0, 0),
            (0x15, 4, 0, libc::SYS_getpid as u32),
            (0x15, 0, 2, libc::SYS_mmap as u32),
            (0x20, 0, 0, 16 + 16),
            (0x45, 1, 0, 4),
            (0x06, 0, 0, ALLOW[0]),
            (0x06, 0, 0, 0x0005_0001),
        ])
    }

    #[test]
    fn filters_are_asked_with_number_and_arguments() {
        let filters = [filter()];
        let allowed = |nr, prot| allows(&filters, nr, &[0, 0, prot, 0, 0, 0], 0);
        assert!(!allowed(libc::SYS_getpid, 0));
        assert!(allowed(libc::SYS_gettid, 0));
        assert!(allowed(libc::SYS_mmap, 3));
        assert!(!allowed(libc::SYS_mmap, 5));
        assert!(allows(&[], libc::SYS_getpid, &[0; 6], 0));
    }

    #[test]
    fn nonsense_allows_nothing_and_ends() {
        for bytes in
            [vec![], vec![0xff; 8], program(&[(0x05, 0, 0, u32::MAX)]), program(&[(0x20, 0, 0, u32::MAX)])]
        {
            assert!(!allows(&[bytes], 1, &[0; 6], 0));
        }
    }
}
