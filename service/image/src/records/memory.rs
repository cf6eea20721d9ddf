use serde::{Deserialize, Serialize};

use super::{DescriptionId, FileId, ObjectId, SpaceId};

/// One address space.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpaceRecord {
    /// Its own number.
    pub id: SpaceId,
    /// Addresses that the kernel keeps of it (prctl(2), PR_SET_MM_MAP).
    pub layout: LayoutRecord,
    /// The auxiliary vector, raw (/proc/PID/auxv).
    pub auxv: Vec<u8>,
    /// The executable (/proc/PID/exe).
    pub exe: FileId,
    /// The mappings, ascending by address, none overlapping.
    pub mappings: Vec<MappingRecord>,
    /// PR_SET_THP_DISABLE.
    pub thp_disabled: bool,
    /// mlockall(2) flags for future mappings (MCL_FUTURE, MCL_ONFAULT), 0 if none.
    pub mlock_future: u32,
}

/// struct prctl_mm_map without the vector and the executable; addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are those of struct prctl_mm_map
pub struct LayoutRecord {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// One mapping (a line of /proc/PID/maps).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MappingRecord {
    /// First address, page-aligned.
    pub start: u64,
    /// Address after the last, page-aligned.
    pub end: u64,
    /// PROT_* of mmap(2).
    pub prot: u32,
    /// MAP_SHARED (else MAP_PRIVATE).
    pub shared: bool,
    /// What lies under it.
    pub kind: MappingKind,
    /// Flags of the mapping.
    pub flags: MappingFlags,
    /// PR_SET_VMA_ANON_NAME, of anonymous mappings.
    pub name: Option<Vec<u8>>,
    /// Guard ranges inside it (MADV_GUARD_INSTALL): first address and address after the last, ascending.
    pub guards: Vec<(u64, u64)>,
}

/// What a mapping is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MappingKind {
    /// Anonymous and private. Its pages are in the container of the space.
    Anonymous,
    /// A file. Private: copied pages are in the container of the space. Shared: nothing is stored, the file is the content.
    File {
        /// The file.
        file: FileId,
        /// Offset of the first byte, page-aligned.
        offset: u64,
        /// The description it was made from was open for writing (VM_MAYWRITE on a shared mapping).
        may_write: bool,
    },
    /// A shared memory object: shared anonymous memory, memfd, System V segment. Shared: its pages are in the object's container. Private: copied pages are in the space's.
    Object {
        /// The object.
        object: ObjectId,
        /// Offset of the first byte, page-aligned.
        offset: u64,
    },
    /// `[vdso]`: moved there, never stored.
    Vdso,
    /// `[vvar]` and `[vvar_vclock]`: moved together with the vDSO.
    Vvar,
    /// The preload library's shared memory (`/memfd:ckpt-gate`): rebuilt with this content, its gate open.
    Gate {
        /// The bytes of the whole mapping.
        content: Vec<u8>,
    },
    /// Memory of a ring of io_uring(7), which has the content.
    Ring {
        /// The ring.
        ring: DescriptionId,
        /// Which part of it: IORING_OFF_SQ_RING, IORING_OFF_CQ_RING or IORING_OFF_SQES.
        offset: u64,
    },
    /// The ring of a context of kernel AIO (io_setup(2)).
    Aio {
        /// How many events the context was asked for; 0: there is none, only the memory of one, inherited by fork(2).
        events: u32,
        /// The bytes of the whole mapping.
        content: Vec<u8>,
    },
}

/// Per-mapping flags (VmFlags of /proc/PID/smaps).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MappingFlags {
    /// MAP_GROWSDOWN (`gd`).
    pub grows_down: bool,
    /// mlock(2) (`lo`).
    pub locked: bool,
    /// MLOCK_ONFAULT (`lf`).
    pub lock_on_fault: bool,
    /// MADV_DONTFORK (`dc`).
    pub dont_fork: bool,
    /// MADV_WIPEONFORK (`wf`).
    pub wipe_on_fork: bool,
    /// MADV_DONTDUMP (`dd`).
    pub dont_dump: bool,
    /// MADV_MERGEABLE (`mg`).
    pub mergeable: bool,
    /// MADV_HUGEPAGE (`hg`).
    pub huge: bool,
    /// MADV_NOHUGEPAGE (`nh`).
    pub no_huge: bool,
    /// MAP_NORESERVE (`nr`).
    pub no_reserve: bool,
    /// MADV_SEQUENTIAL (`sr`).
    pub sequential: bool,
    /// MADV_RANDOM (`rr`).
    pub random: bool,
    /// hugetlbfs page size in bytes, 0 for ordinary pages (`ht`).
    pub hugetlb: u64,
    /// MAP_DROPPABLE, Linux 6.11 (`dp`).
    pub droppable: bool,
    /// mseal(2), Linux 6.10 (`sl`).
    pub sealed: bool,
}

/// A shared memory object; its non-zero pages are in its own container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Its own number.
    pub id: ObjectId,
    /// What made it.
    pub kind: ObjectKind,
    /// Size in bytes.
    pub size: u64,
    /// Device and inode number, as maps and stat(2) showed it.
    pub identity: (u64, u64),
}

/// What made a shared memory object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ObjectKind {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS), /dev/zero, in ordinary pages.
    Anonymous,
    /// memfd_create(2).
    Memfd {
        /// Its name without the `memfd:` prefix.
        name: Vec<u8>,
        /// F_GET_SEALS.
        seals: u32,
        /// st_mode.
        mode: u32,
        /// Owner and owning group.
        owner: (u32, u32),
        /// hugetlbfs page size in bytes, 0 for ordinary pages.
        hugetlb: u64,
    },
    /// shmget(2).
    SysvShm {
        /// shmid.
        shmid: i32,
        /// Key, 0 for IPC_PRIVATE.
        key: i32,
        /// Permission bits with SHM_DEST where it was marked for removal.
        mode: u32,
        /// Owner uid, gid, creator uid, gid.
        owner: [u32; 4],
        /// The unit in whose IPC namespace it lies.
        unit: super::UnitIndex,
    },
    /// mmap(MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB).
    AnonymousHuge {
        /// hugetlbfs page size in bytes.
        page: u64,
    },
}

/// System V IPC besides shared memory: semaphore sets and message queues of the group's IPC namespaces.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SysvRecord {
    /// Semaphore sets.
    pub semaphores: Vec<SemaphoreSetRecord>,
    /// What processes have to undo at their end (SEM_UNDO).
    pub undo: Vec<UndoRecord>,
    /// Message queues.
    pub queues: Vec<SysvQueueRecord>,
    /// Segments that nobody is attached to, with the member that used each last, `None` if that was another process.
    pub unattached: Vec<(super::ObjectId, Option<super::Pid>)>,
}

/// What is added to a semaphore when a process ends (semop(2), SEM_UNDO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoRecord {
    /// The process.
    pub pid: super::Pid,
    /// semid of the set.
    pub semid: i32,
    /// Which semaphore of the set.
    pub number: u16,
    /// What is added.
    pub adjustment: i16,
}

/// One System V message queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SysvQueueRecord {
    /// The unit in whose IPC namespace it lies.
    pub unit: super::UnitIndex,
    /// msqid.
    pub msqid: i32,
    /// Key.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner uid, gid, creator uid, gid.
    pub owner: [u32; 4],
    /// msg_qbytes: how many bytes it may hold.
    pub most: u64,
    /// The member that sent last.
    pub sender: Option<super::Pid>,
    /// The member that received last.
    pub receiver: Option<super::Pid>,
    /// The messages, in their order: type and text.
    pub messages: Vec<(i64, Vec<u8>)>,
}

/// One System V semaphore set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SemaphoreSetRecord {
    /// The unit in whose IPC namespace it lies.
    pub unit: super::UnitIndex,
    /// semid.
    pub semid: i32,
    /// Key.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner uid, gid, creator uid, gid.
    pub owner: [u32; 4],
    /// The values.
    pub values: Vec<u16>,
}
