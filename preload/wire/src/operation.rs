//! The operations that the table can tell.

/// What decides whether an operation touches files: its descriptor, or its nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The descriptor in the slot: gated if it is a regular file, a directory or a block device; a pipe, a socket
    /// or a terminal may block for ever and is never waited for.
    Descriptor,
    /// A name, a mapping or the whole file system: always gated.
    Always,
}

macro_rules! operations {
    ($($variant:ident = $code:literal, $name:literal, $subject:ident;)*) => {
        /// The operation in a slot. Codes are part of the contract: never given anew.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        #[allow(missing_docs, reason = "each variant is the call of its name")]
        pub enum OpCode { $($variant = $code,)* }

        impl OpCode {
            /// Every operation, by ascending code.
            pub const ALL: &'static [OpCode] = &[$(OpCode::$variant,)*];

            /// The operation of a code; `None` for a code that this version does not know.
            pub fn from_code(code: u32) -> Option<OpCode> {
                match code { $($code => Some(OpCode::$variant),)* _ => None }
            }

            /// The name of the system call.
            pub fn name(self) -> &'static str {
                match self { $(OpCode::$variant => $name,)* }
            }

            /// What decides whether the operation is gated.
            pub const fn subject(self) -> Subject {
                match self { $(OpCode::$variant => Subject::$subject,)* }
            }
        }
    };
}

operations! {
    Open = 1, "open", Always;
    Read = 2, "read", Descriptor;
    Write = 3, "write", Descriptor;
    Truncate = 4, "truncate", Always;
    Ftruncate = 5, "ftruncate", Descriptor;
    Fallocate = 6, "fallocate", Descriptor;
    Fsync = 7, "fsync", Descriptor;
    Sync = 8, "sync", Always;
    Rename = 9, "rename", Always;
    Link = 10, "link", Always;
    Symlink = 11, "symlink", Always;
    Unlink = 12, "unlink", Always;
    Mkdir = 13, "mkdir", Always;
    Mknod = 14, "mknod", Always;
    CopyFileRange = 15, "copy_file_range", Descriptor;
    Sendfile = 16, "sendfile", Descriptor;
    Splice = 17, "splice", Descriptor;
    Mmap = 18, "mmap", Descriptor;
    Msync = 19, "msync", Always;
    Chmod = 20, "chmod", Always;
    Chown = 21, "chown", Always;
    Utimes = 22, "utimensat", Always;
    Xattr = 23, "setxattr", Always;
    StdioOpen = 24, "fopen", Always;
    StdioRead = 25, "fread", Descriptor;
    StdioWrite = 26, "fwrite", Descriptor;
    StdioClose = 27, "fclose", Descriptor;
    IoSubmit = 28, "io_submit", Always;
}
