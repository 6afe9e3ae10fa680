//! META: all of a rank that is not memory. Everything in here is upper-half state or a fact about the host; no
//! address of the lower half may stand in it (INV-3). Encoded by the parent before the fork (it allocates), decoded at a
//! restart and by `inspect`. Names that come from the system are bytes: Linux paths need not be text.

use serde::{Deserialize, Serialize};

use crate::section::{self, HEAD};
use crate::{Error, Seal, Section, error::Bad};

/// Longest META with its head; more is taken for damage.
pub const META_MAX: u64 = 256 << 20;

/// All of a rank that is not memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The process as a whole.
    pub process: Process,
    /// Mappings; only their present, non-zero pages are in the memory part.
    pub regions: Vec<Region>,
    /// Threads, the main thread first.
    pub threads: Vec<Thread>,
    /// Signals and timers of the process.
    pub signals: Signals,
    /// Open descriptors of the application.
    pub fds: Vec<Fd>,
}

/// The process as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The application's executable.
    pub exe: Vec<u8>,
    /// Its arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its environment at its start.
    pub envp: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// File mode creation mask.
    pub umask: u32,
    /// Process id that the application knows.
    pub vpid: i32,
    /// Host name.
    pub host: String,
    /// The host's boot id.
    pub boot_id: String,
    /// Kernel release.
    pub kernel: String,
    /// CLOCK_MONOTONIC at the still point, as the application saw it.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME at the still point.
    pub realtime_ns: u64,
    /// The processor.
    pub cpu: Cpu,
    /// MPI, as far as a restart must know before memory is back.
    pub mpi: Mpi,
    /// Checkpoints and restarts that this process image has gone through.
    pub generation: u32,
}

/// The processor under which the image was taken. A host that lacks one of the features is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// CPUID's vendor string.
    pub vendor: String,
    /// Family, model and stepping (CPUID 1, eax).
    pub family: u32,
    /// Registers of the CPUID leaves that tell features.
    pub features: Vec<u32>,
    /// State components that are saved.
    pub xcr0: u64,
    /// Bytes of the XSAVE area.
    pub xsave_size: u32,
}

/// State of MPI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mpi {
    /// 0 before MPI_Init, 1 live, 2 finalized.
    pub state: u32,
    /// Thread level.
    pub level: u32,
    /// Library family under which the image was taken; empty without MPI.
    pub family: String,
}

/// A mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// PROT_ bits.
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Name as the kernel tells it.
    pub name: String,
    /// Inode, 0 for anonymous memory.
    pub inode: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bits of whoever captures.
    pub flags: u64,
}

/// A thread. Its registers lie in memory, in the signal frame at `ucontext`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread pointer upstairs.
    pub fs: u64,
    /// Thread id that the application knows.
    pub vtid: i32,
    /// Address of the saved `ucontext_t`.
    pub ucontext: u64,
    /// What set_robust_list was told.
    pub robust_head: u64,
    /// What set_robust_list was told.
    pub robust_len: u64,
    /// What rseq was told.
    pub rseq_addr: u64,
    /// Low half length, high half signature.
    pub rseq_len_sig: u64,
    /// What the kernel clears at the thread's end.
    pub clear_tid: u64,
    /// Alternate signal stack.
    pub alt_sp: u64,
    /// Its size, and in the high half its flags.
    pub alt_size_flags: u64,
    /// Name (PR_GET_NAME).
    pub name: String,
    /// CPU mask as sched_getaffinity gave it.
    pub affinity: Vec<u8>,
    /// Pending signals of this thread: `siginfo_t` after `siginfo_t`.
    pub pending: Vec<u8>,
}

/// Signals and timers of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// Signals pending for the process: `siginfo_t` after `siginfo_t`.
    pub pending: Vec<u8>,
    /// Interval timers (real, virtual, profiling): value and interval in microseconds.
    pub itimers: [(u64, u64); 3],
}

/// An open descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    /// Its number.
    pub num: i32,
    /// Status flags (F_GETFL).
    pub flags: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// File offset; 0 where there is none.
    pub offset: u64,
    /// Lowest number that shares this open file description (dup), or the number itself.
    pub same_as: i32,
    /// What is open.
    pub kind: FdKind,
}

/// What is open behind a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FdKind {
    /// Standard stream 0, 1 or 2 as the launcher gave it; connected anew at a restart.
    Std(u8),
    /// A regular file.
    File {
        /// Path.
        path: Vec<u8>,
        /// Length at the still point.
        len: u64,
        /// Device.
        dev: u64,
        /// Inode.
        ino: u64,
    },
    /// A directory.
    Dir {
        /// Path.
        path: Vec<u8>,
    },
    /// A device without state: /dev/null, /dev/zero, /dev/urandom and their like.
    Dev {
        /// Path.
        path: Vec<u8>,
    },
    /// A TCP socket.
    Tcp(Tcp),
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// Of IPv6.
    pub v6: bool,
    /// What getsockname(2) tells.
    pub local: Vec<u8>,
    /// What getpeername(2) tells; empty if it is not connected.
    pub peer: Vec<u8>,
    /// Names of this end and of the other one, which are theirs alone in the job.
    pub ends: [Vec<u8>; 2],
    /// How far it is.
    pub phase: Phase,
    /// The other end sends no more.
    pub gone: bool,
    /// This end wants to hear no more: shutdown(2) with SHUT_RD.
    pub deaf: bool,
    /// Options: level, name, value.
    pub options: Vec<(i32, i32, Vec<u8>)>,
    /// Bytes that have come and were not read.
    pub waiting: Vec<u8>,
}

/// How far a TCP socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Made, and perhaps bound.
    Fresh,
    /// Listens.
    Listening {
        /// How many may wait to be accepted.
        backlog: i32,
    },
    /// Connected.
    Connected {
        /// This end sends no more.
        shut: bool,
    },
    /// Was connected, and nobody is at the other end any more.
    Left {
        /// This end sends no more.
        shut: bool,
    },
}

impl Default for FdKind {
    fn default() -> Self {
        FdKind::Std(0)
    }
}

/// META's bytes, head included, and [`crate::Header::meta_sum`]. Allocates: for the parent, before the fork.
pub fn encode_meta(meta: &Meta, seal: &Seal) -> Result<(Vec<u8>, u128), Error> {
    let mut out = postcard::to_extend(meta, vec![0u8; HEAD]).map_err(|e| Error::Encode(e.to_string()))?;
    if out.len() as u64 > META_MAX {
        return Err(Error::Encode(format!("{} bytes, {META_MAX} allowed", out.len())));
    }
    let sum = seal.digest(Section::Meta, 0, &out[HEAD..]);
    let len = (out.len() - HEAD) as u64;
    section::encode_head(Section::Meta, len, sum, &mut out);
    Ok((out, sum))
}

/// Reads a payload whose checksum is right. The text says what is wrong with it.
pub fn decode_meta(payload: &[u8]) -> Result<Meta, Bad> {
    match postcard::take_from_bytes(payload) {
        Ok((m, [])) => Ok(m),
        Ok((_, rest)) => Err(format!("{} bytes too many", rest.len())),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_neither_panics_nor_takes_much_memory() {
        // A length prefix of 2^63 in front of a list must not be believed.
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(decode_meta(&huge).is_err());
        let mut x = 1u64;
        for len in 0..600 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (x >> 56) as u8
                })
                .collect();
            let _ = decode_meta(&bytes);
        }
    }
}
