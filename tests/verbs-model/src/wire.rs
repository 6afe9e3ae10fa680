//! What goes from one device to another: one packet a message, over datagram sockets of this machine.

use std::path::{Path, PathBuf};

/// Where a queue pair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// None: by LID.
    pub(crate) gid: Option<[u8; 16]>,
    pub(crate) lid: u16,
    pub(crate) number: u32,
    /// By which of its own addresses the sender is to be known there.
    pub(crate) index: u8,
}

impl Place {
    /// The name of its socket in the directory of the fabric. On InfiniBand the LID leads there, also where there is an address.
    pub(crate) fn path(&self, dir: &Path) -> PathBuf {
        let number = self.number;
        dir.join(match self.gid {
            Some(gid) if self.lid == 0 => format!("{:x}.{number:x}", u128::from_be_bytes(gid)),
            _ => format!("lid{}.{number:x}", self.lid),
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
    /// None: by LID.
    pub(crate) to_gid: Option<[u8; 16]>,
    pub(crate) psn: u32,
    pub(crate) opcode: u32,
    pub(crate) imm: u32,
    pub(crate) key: u32,
    /// The shared queue that it is for (XRC).
    pub(crate) srq: u32,
    pub(crate) partition: u16,
    pub(crate) solicited: bool,
    /// Remote address, and two operands of an atomic; or the length to be read.
    pub(crate) words: [u64; 3],
    pub(crate) data: Vec<u8>,
}

impl Packet {
    pub(crate) fn pack(&self) -> Vec<u8> {
        let flags = [self.solicited, self.from.gid.is_some(), self.to_gid.is_some()].map(u8::from);
        let mut out = vec![self.kind as u8, flags[0], flags[1], flags[2]];
        out.extend(self.from.gid.unwrap_or_default());
        out.extend(self.to_gid.unwrap_or_default());
        out.extend(self.from.lid.to_le_bytes());
        out.extend(self.partition.to_le_bytes());
        for word in [self.from.number, self.to, self.psn, self.opcode, self.imm, self.key, self.srq] {
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
        let gid = |at: usize| -> Option<[u8; 16]> { bytes.get(at..at + 16)?.try_into().ok() };
        let (from, to) = (gid(4)?, gid(20)?);
        let gid = (bytes[2] != 0).then_some(from);
        Some(Packet {
            kind: *kinds.get(usize::from(*bytes.first()?))?,
            solicited: *bytes.get(1)? != 0,
            from: Place { gid, lid: word(36)? as u16, number: word(40)?, index: 0 },
            to_gid: (bytes[3] != 0).then_some(to),
            to: word(44)?,
            psn: word(48)?,
            opcode: word(52)?,
            imm: word(56)?,
            key: word(60)?,
            srq: word(64)?,
            partition: (word(36)? >> 16) as u16,
            words: [long(68)?, long(76)?, long(84)?],
            data: bytes.get(92..)?.to_vec(),
        })
    }
}

/// Of IPv4.
fn is_v4(gid: &[u8]) -> bool {
    gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

fn sum(v4: &[u8]) -> u16 {
    let mut all = 0;
    for pair in v4.chunks(2) {
        all += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        all = (all & 0xffff) + (all >> 16);
    }
    !all as u16
}

/// The global header of a datagram; of RoCE over IPv4 the header of that stands at its end.
pub(crate) fn header(from: &[u8; 16], to: &[u8; 16]) -> [u8; 40] {
    let mut header = [0x5a; 40];
    if is_v4(from) && is_v4(to) {
        let v4 = &mut header[20..];
        v4.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        v4[12..16].copy_from_slice(&from[12..]);
        v4[16..].copy_from_slice(&to[12..]);
        let sum = sum(v4).to_be_bytes();
        v4[10..12].copy_from_slice(&sum);
    } else {
        header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 0x1b, 64]);
        header[8..24].copy_from_slice(from);
        header[24..].copy_from_slice(to);
    }
    header
}

/// Sender and receiver in such a header.
pub(crate) fn ends(header: &[u8; 40]) -> [[u8; 16]; 2] {
    let v4 = &header[20..];
    [0, 1].map(|k| {
        let mut gid = [0; 16];
        if v4[0] == 0x45 && sum(v4) == 0 {
            gid[10..12].fill(0xff);
            gid[12..].copy_from_slice(&v4[12 + 4 * k..16 + 4 * k]);
        } else {
            gid.copy_from_slice(&header[8 + 16 * k..24 + 16 * k]);
        }
        gid
    })
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
                from: Place { gid, lid: 3, number: 18, index: 0 },
                to_gid: gid.is_none().then_some([9; 16]),
                psn: 1 << 23,
                opcode: 4,
                imm: 5,
                key: 6,
                srq: 7,
                partition: 0x8001,
                solicited: gid.is_none(),
                words: [1, u64::MAX, 3],
                data: vec![1, 2, 3],
            };
            assert_eq!(Packet::of(&packet.pack()), Some(packet));
        }
        assert_eq!(Packet::of(&[0; 91]), None);
    }

    #[test]
    fn headers_there_and_back() {
        let v4 = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
        for both in [[v4(1), v4(2)], [[0xfe; 16], v4(2)], [[1; 16], [2; 16]]] {
            assert_eq!(ends(&header(&both[0], &both[1])), both);
        }
    }
}
