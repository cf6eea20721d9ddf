//! Where the code of [`ckpt_wire::resume`] lies in a process.
use ckpt_wire::resume::CODE;

/// Data to the compiler, code to the processor; nothing here calls it.
#[unsafe(link_section = ".text.ckpt_resume")]
static RESUME: [u8; CODE.len()] = CODE;

/// Its address.
pub fn address() -> u64 {
    RESUME.as_ptr() as u64
}
