//! What goes over the agent's socket, and how it is framed. Runs *next door* and in the control thread of the
//! *lower half*.
//!
//! ```text
//!   0      2         4            8
//!   ├ "SP" ┼ version ┼ length u32 ┼ postcard bytes … ┤      little endian
//! ```
//!
//! What a reader would get wrong: every message about a checkpoint names it. Without that, a late answer to a
//! checkpoint that was given up would be taken for one to its successor.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{Read, Write};

/// Version of the messages; the two ends must have the same.
pub const WIRE_VERSION: u16 = 7;
/// Longest payload accepted.
pub const MAX_FRAME: usize = 256 << 20;
const MAGIC: [u8; 2] = *b"SP";
const HEADER: usize = 8;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("exchange a message")]
    Io(#[from] std::io::Error),
    /// The other end closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// Not our protocol.
    #[error("frame does not begin with its mark")]
    Mark,
    /// Another version of the protocol.
    #[error("message version {0}, expected {WIRE_VERSION}")]
    Version(u16),
    /// Too long.
    #[error("frame of {0} bytes is longer than the limit of {MAX_FRAME}")]
    Length(usize),
    /// The payload does not decode.
    #[error("message does not decode")]
    Decode(#[from] postcard::Error),
}

/// Bytes for, or from, other ranks.
pub type Items = Vec<(u32, Vec<u8>)>;

/// The same, with the sender's number for each: later ones have higher numbers, whoever they are for.
pub type Mails = Vec<(u32, u64, Vec<u8>)>;

/// What a rank says in a round between all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// To whom, what.
    pub to: Items,
    /// Keys that are this rank's, and what stands behind each: for whoever asks in the same round.
    pub publish: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys that this rank wants to know.
    pub ask: Vec<Vec<u8>>,
}

/// What a rank is told of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// From whom, what.
    pub from: Items,
    /// Keys that it asked for: each with a rank that published it, and what stands behind it there.
    pub found: Vec<(Vec<u8>, u32, Vec<u8>)>,
}

/// A collective clock as a rank reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Agreed identity.
    pub gid: u64,
    /// Collectives entered, the one inside of which the rank is included.
    pub count: u64,
    /// The rank is inside one.
    pub inside: bool,
    /// World ranks of the members; empty once the coordinator has been told.
    pub members: Vec<u32>,
}

/// What a rank is doing while collectives settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// Runs in the application.
    Running,
    /// Waits for a peer, interruptibly.
    Waiting,
    /// Held at the entry of a collective beyond its target.
    Held(u64),
    /// Inside a collective.
    Inside(u64),
}

/// How a rank takes its leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaving {
    /// The process ends with this status.
    Exit(i32),
    /// MPI_Abort with this code.
    Abort(i32),
    /// MPI_Finalize is done; the process runs on.
    Finalized,
    /// The process replaces itself by execve and will say hello again.
    Exec,
    /// This signal ends the process: its launcher, or a user, wants it to.
    Ended(i32),
}

impl Leaving {
    /// From the numbers of [`stillpoint_abi::half::goodbye`]. An unknown kind is an exit.
    pub fn from_kind(kind: u32, status: i32) -> Self {
        use stillpoint_abi::half::goodbye;
        match kind {
            goodbye::ABORT => Leaving::Abort(status),
            goodbye::FINALIZED => Leaving::Finalized,
            goodbye::EXEC => Leaving::Exec,
            goodbye::ENDED => Leaving::Ended(status),
            _ => Leaving::Exit(status),
        }
    }
}

/// The outcome of a request: the checkpoint's number, or the reasons why there is none.
pub type Outcome = Result<u64, Vec<String>>;

/// How far a rank was told in exchanges, in this start, whatever agents there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The last checkpoint whose exchange reached it.
    pub told: u64,
    /// The checkpoint whose exchange was cut off after it had contributed; 0: none, or it is settled.
    pub cut: u64,
}

/// From a rank to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRank {
    /// First message of a connection.
    Hello {
        /// World rank.
        rank: u32,
        /// Ranks of the job.
        size: u32,
        /// Process id.
        pid: u32,
        /// Which start of the run this process belongs to.
        incarnation: u32,
        /// The process came from an image and will say [`FromRank::Rebuilt`].
        restored: bool,
        /// It has been welcome before, and has lost the line.
        before: Option<Before>,
    },
    /// Clocks that changed since the last report, and what the rank does.
    Clocks {
        /// Checkpoint.
        ckpt: u64,
        /// Version of the targets that were in force when the clocks were read; 0 before any.
        version: u64,
        /// Changed clocks (all of them in the first report).
        clocks: Vec<Clock>,
        /// What the rank does.
        doing: Doing,
    },
    /// The rank cannot be saved.
    Refused {
        /// Checkpoint.
        ckpt: u64,
        /// One line each.
        reasons: Vec<String>,
    },
    /// Every thread stands still upstairs.
    Stopped {
        /// Checkpoint.
        ckpt: u64,
    },
    /// Contribution to an exchange between all ranks.
    Exchange {
        /// Checkpoint; 0 while rebuilding after a restart.
        ckpt: u64,
        /// Counts from 0.
        round: u32,
        /// What it says.
        said: Said,
    },
    /// All messages are home, as far as this rank knows: nothing to say in this round.
    Drained {
        /// Checkpoint.
        ckpt: u64,
        /// The round that is not handed on yet.
        round: u32,
    },
    /// They are not, and will not be.
    DrainFailed {
        /// Checkpoint.
        ckpt: u64,
        /// Why.
        reason: String,
    },
    /// The image is frozen (direct: written).
    Snapped {
        /// Checkpoint.
        ckpt: u64,
        /// Bytes that it will hold.
        bytes: u64,
        /// It is written already: as it was ordered, or because this rank cannot have it written by a frozen child.
        direct: bool,
    },
    /// The image is durable.
    Written {
        /// Checkpoint.
        ckpt: u64,
        /// Bytes of memory in it.
        bytes: u64,
        /// xxh3-128 of the file, little endian.
        digest: [u8; 16],
        /// Length of the file.
        file_len: u64,
    },
    /// The image could not be written.
    WriteFailed {
        /// Checkpoint.
        ckpt: u64,
        /// Why.
        reason: String,
    },
    /// After a restart: everything is made anew, as far as this rank knows.
    Rebuilt {
        /// The round that is not handed on yet.
        round: u32,
    },
    /// The rank leaves.
    Goodbye(Leaving),
    /// The application asks for a checkpoint, or, as 0, a scheduler.
    Request {
        /// Returned in the answer.
        id: u64,
    },
    /// Bytes for other ranks, outside of exchanges.
    Mail {
        /// To whom, what.
        items: Mails,
    },
    /// Answer to an [`ToRank::Abort`] that has cut an exchange off.
    CutOff(Before),
}

/// From the agent to a rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRank {
    /// Answer to a hello.
    Welcome,
    /// The hello is refused; the connection is closed next.
    Denied {
        /// Why.
        reason: String,
    },
    /// A checkpoint is wanted.
    Intend {
        /// Its number.
        ckpt: u64,
    },
    /// Collectives that may be entered.
    Targets {
        /// To be named in the next report, which is due at once.
        version: u64,
        /// Identity and target; what is not named keeps its target.
        targets: Vec<(u64, u64)>,
    },
    /// Stop all threads.
    Stop,
    /// What the others contributed to a round; is a barrier too.
    Exchanged {
        /// Round.
        round: u32,
        /// What there is for this rank.
        heard: Heard,
    },
    /// Freeze the image.
    Snapshot {
        /// File to write.
        path: String,
        /// Write it before answering, instead of forking.
        direct: bool,
        /// Seed of the image's hashes.
        seed: u64,
    },
    /// Threads run on.
    Resume,
    /// The checkpoint is given up.
    Abort {
        /// Why.
        reason: String,
        /// Its exchange has reached some ranks, and perhaps not others: to be answered with [`FromRank::CutOff`].
        cut: bool,
    },
    /// The checkpoint exists.
    Committed {
        /// Its number.
        ckpt: u64,
    },
    /// The checkpoint exists and the job was to end with it: end now, without running on.
    Leave,
    /// After a restart: every rank is rebuilt.
    Go,
    /// All ranks are back. These were not told of the exchange that was cut off.
    Untold {
        /// Checkpoint.
        ckpt: u64,
        /// World ranks.
        ranks: Vec<u32>,
    },
    /// Bytes from other ranks.
    Mail {
        /// From whom, what.
        items: Mails,
    },
    /// Answer to [`FromRank::Request`].
    Answer {
        /// The request's.
        id: u64,
        /// What came of it.
        result: Outcome,
    },
}

/// From the command line to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// How is the job?
    Status,
    /// Take a checkpoint, answer when it is durable; `stop`: the job ends with it.
    Checkpoint {
        /// End the job.
        stop: bool,
    },
    /// How did the job end?
    Outcome,
    /// The agent ends.
    Shutdown,
    /// No checkpoints on the interval until further notice, or again.
    Pause {
        /// None.
        paused: bool,
    },
}

/// Where a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// Not heard of yet.
    Absent,
    /// Connected.
    Here,
    /// Ended by itself with this status.
    Finished(i32),
    /// Called MPI_Abort.
    Aborted(i32),
    /// Gone without goodbye.
    Lost,
    /// Ended because a checkpoint was to stop the job.
    Left,
}

/// What `status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Ranks, 0 before the first hello.
    pub size: u32,
    /// Which start.
    pub incarnation: u32,
    /// Ranks by number: where each is, and its process id.
    pub ranks: Vec<(Presence, u32)>,
    /// Name of the stage of the checkpoint in progress.
    pub stage: String,
    /// Number of the checkpoint in progress, 0 if none.
    pub ckpt: u64,
    /// In the stage copy: bytes of its images that are in the shared directory, and bytes there are.
    pub copying: Option<(u64, u64)>,
    /// All ranks run (after a restart: all are rebuilt).
    pub running: bool,
    /// Checkpoints committed by this agent.
    pub committed: u64,
    /// Checkpoints given up by this agent.
    pub given_up: u64,
    /// The last one committed: its measures.
    pub last: Option<Measures>,
    /// Why the last one that was given up was.
    pub last_reasons: Vec<String>,
}

/// Measures of one checkpoint, by the coordinator's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measures {
    /// Checkpoint.
    pub ckpt: u64,
    /// From the first rank held at a collective to the resume.
    pub held_ns: u64,
    /// From the order to stop to the resume.
    pub stopped_ns: u64,
    /// From the request until the last image is durable where a commit looks.
    pub total_ns: u64,
    /// Bytes of memory in all images.
    pub bytes: u64,
    /// Some image was written directly, instead of by a frozen child.
    pub direct: bool,
}

/// How a job ended, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutcome {
    /// Which start.
    pub incarnation: u32,
    /// Ranks gone without goodbye, in the order in which it was noticed.
    pub lost: Vec<u32>,
    /// Of these, the ranks that somebody has ended by SIGTERM: their launcher, because of another rank.
    #[serde(default)]
    pub told: Vec<u32>,
    /// Of these, the ranks of which was heard just after the first one had failed, and whom nobody had told to end: they may have been killed
    /// before, and their peers have given up because of it and been heard of first.
    #[serde(default)]
    pub silent: Vec<u32>,
    /// Ranks that exited, and their status.
    pub exited: Vec<(u32, i32)>,
    /// Rank that called MPI_Abort first, and its code.
    pub abort: Option<(u32, i32)>,
    /// The first departure that was neither an exit with 0 nor wanted was a loss: a restart is due.
    pub restart: bool,
    /// The job was stopped by a checkpoint with this number.
    pub stopped_at: Option<u64>,
    /// Every rank has left in some way.
    pub ended: bool,
}

impl JobOutcome {
    /// A rank was lost that nobody had told to end.
    pub fn is_cut_down(&self) -> bool {
        self.lost.iter().any(|rank| !self.told.contains(rank))
    }
}

/// From the agent to the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Command::Status`].
    Status(JobStatus),
    /// To [`Command::Checkpoint`].
    Checkpoint(Outcome),
    /// To [`Command::Outcome`].
    Outcome(JobOutcome),
    /// To [`Command::Shutdown`] and [`Command::Pause`].
    Done,
}

/// All that an agent may receive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// From a rank.
    Rank(FromRank),
    /// From the command line.
    Command(Command),
}

/// All that an agent may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// To a rank.
    Rank(ToRank),
    /// To the command line.
    Reply(Reply),
}

/// One message as a frame.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    let body = postcard::to_allocvec(message)?;
    if body.len() > MAX_FRAME {
        return Err(WireError::Length(body.len()));
    }
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&WIRE_VERSION.to_le_bytes());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Takes one message from the front of `buf`. `None`: more bytes are needed.
pub fn decode<M: DeserializeOwned>(buf: &[u8]) -> Result<Option<(M, usize)>, WireError> {
    let Some(header) = buf.first_chunk::<HEADER>() else { return Ok(None) };
    let len = body_len(header)?;
    let Some(body) = buf.get(HEADER..HEADER + len) else { return Ok(None) };
    Ok(Some((decode_body(body)?, HEADER + len)))
}

/// Writes one message.
pub fn write<M: Serialize>(to: &mut impl Write, message: &M) -> Result<(), WireError> {
    to.write_all(&encode(message)?)?;
    Ok(to.flush()?)
}

/// Reads one message, blocking.
pub fn read<M: DeserializeOwned>(from: &mut impl Read) -> Result<M, WireError> {
    let mut header = [0; HEADER];
    let mut got = 0;
    while got < HEADER {
        match from.read(&mut header[got..]) {
            Ok(0) if got == 0 => return Err(WireError::Closed),
            Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let len = body_len(&header)?;
    // Grows as bytes arrive: a false length costs the sender the bytes, not us the memory.
    let mut body = Vec::with_capacity(len.min(1 << 16));
    from.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    decode_body(&body)
}

fn body_len(header: &[u8; HEADER]) -> Result<usize, WireError> {
    let [m0, m1, v0, v1, l0, l1, l2, l3] = *header;
    if [m0, m1] != MAGIC {
        return Err(WireError::Mark);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != WIRE_VERSION {
        return Err(WireError::Version(version));
    }
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_FRAME { Err(WireError::Length(len)) } else { Ok(len) }
}

fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<M, WireError> {
    let (message, rest) = postcard::take_from_bytes(body)?;
    if !rest.is_empty() {
        return Err(WireError::Decode(postcard::Error::SerdeDeCustom));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ToAgent {
        ToAgent::Rank(FromRank::Clocks {
            ckpt: 7,
            version: 3,
            clocks: vec![Clock { gid: u64::MAX, count: 12, inside: true, members: vec![0, 5, 9] }],
            doing: Doing::Held(4),
        })
    }

    #[test]
    fn round_trip_in_pieces() {
        let frame = encode(&sample()).unwrap();
        for cut in 0..frame.len() {
            assert!(decode::<ToAgent>(&frame[..cut]).unwrap().is_none(), "cut at {cut}");
        }
        let mut two = frame.clone();
        two.extend_from_slice(&frame);
        assert_eq!(decode::<ToAgent>(&two).unwrap(), Some((sample(), frame.len())));
        assert_eq!(read::<ToAgent>(&mut frame.as_slice()).unwrap(), sample());
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let good = encode(&sample()).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            decode::<ToAgent>(&bad)
        };
        assert!(matches!(with(0, b'X'), Err(WireError::Mark)));
        assert!(matches!(with(2, 99), Err(WireError::Version(99))));
        assert!(matches!(with(7, 0xff), Err(WireError::Length(_))));
        assert!(matches!(with(8, 0x7f), Err(WireError::Decode(_))));
        assert!(matches!(read::<ToAgent>(&mut [].as_slice()), Err(WireError::Closed)));
        assert!(matches!(read::<ToAgent>(&mut &good[..good.len() - 1]), Err(WireError::Io(_))));
    }

    #[test]
    fn a_false_length_of_a_list_does_not_allocate() {
        // FromRank::Mail with 2^60 items
        let mut body = vec![0, 13];
        body.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(decode_body::<ToAgent>(&body).is_err());
    }
}
