//! What goes from one device to another: one packet a message, over datagram sockets of this machine.

use std::path::{Path, PathBuf};

/// Where a queue pair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// None: by LID.
    pub(crate) gid: Option<[u8; 16]>,
    pub(crate) lid: u16,
    pub(crate) number: u32,
}

impl Place {
    /// The name of its socket in the directory of the fabric.
    pub(crate) fn path(&self, dir: &Path) -> PathBuf {
        let number = self.number;
        dir.join(match self.gid {
            Some(gid) => format!("{:x}.{number:x}", u128::from_be_bytes(gid)),
            None => format!("lid{}.{number:x}", self.lid),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Request,
    /// Executed; with what was read.
    Ack,
    /// No receive is there.
    NotReady,
    /// Refused: the address is not to be accessed.
    Access,
    /// Refused: more than the receive has room for.
    Length,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) kind: Kind,
    pub(crate) to: u32,
    pub(crate) from: Place,
    pub(crate) psn: u32,
    pub(crate) opcode: u32,
    pub(crate) imm: u32,
    pub(crate) key: u32,
    pub(crate) solicited: bool,
    /// Remote address, and two operands of an atomic; or the length to be read.
    pub(crate) words: [u64; 3],
    pub(crate) data: Vec<u8>,
}

impl Packet {
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut out = vec![self.kind as u8, u8::from(self.solicited), u8::from(self.from.gid.is_some()), 0];
        out.extend(self.from.gid.unwrap_or_default());
        out.extend(u32::from(self.from.lid).to_le_bytes());
        for word in [self.from.number, self.to, self.psn, self.opcode, self.imm, self.key] {
            out.extend(word.to_le_bytes());
        }
        self.words.iter().for_each(|w| out.extend(w.to_le_bytes()));
        out.extend(&self.data);
        out
    }

    pub(crate) fn of(bytes: &[u8]) -> Option<Packet> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let kinds = [Kind::Request, Kind::Ack, Kind::NotReady, Kind::Access, Kind::Length];
        let gid: [u8; 16] = bytes.get(4..20)?.try_into().ok()?;
        Some(Packet {
            kind: *kinds.get(usize::from(*bytes.first()?))?,
            solicited: *bytes.get(1)? != 0,
            from: Place { gid: (bytes[2] != 0).then_some(gid), lid: word(20)? as u16, number: word(24)? },
            to: word(28)?,
            psn: word(32)?,
            opcode: word(36)?,
            imm: word(40)?,
            key: word(44)?,
            words: [long(48)?, long(56)?, long(64)?],
            data: bytes.get(72..)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_there_and_back() {
        for (kind, gid) in [(Kind::Request, Some([7; 16])), (Kind::Length, None)] {
            let packet = Packet {
                kind,
                to: 17,
                from: Place { gid, lid: 3, number: 18 },
                psn: 1 << 23,
                opcode: 4,
                imm: 5,
                key: 6,
                solicited: gid.is_none(),
                words: [1, u64::MAX, 3],
                data: vec![1, 2, 3],
            };
            assert_eq!(Packet::of(&packet.pack()), Some(packet));
        }
        assert_eq!(Packet::of(&[0; 71]), None);
    }
}
