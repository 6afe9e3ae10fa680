//! The global header of a datagram, which stands in the first 40 bytes of what it was received into. Pure.
//!
//! ```text
//!   InfiniBand, RoCE over IPv6 │ … 8 bytes │ sender │ receiver │
//!   RoCE over IPv4             │ 20 bytes, nobody says of what │ header of IPv4: … sum │ sender │ receiver │
//! ```
//!
//! What a reader would get wrong: which of the two it is stands nowhere. It is the second if its sum is right (annex A17 of the InfiniBand
//! specification; `get_grh_header_version` of rdma-core), so who writes other addresses into it writes another sum.

use crate::address::Raw;

pub(crate) type Header = [u8; 40];

/// The beginning of an address of IPv4, as a GID has it.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// The sum of a header of IPv4 (RFC 1071); 0xffff when the right one stands in it.
fn sum(v4: &[u8]) -> u16 {
    let all: u32 = v4.chunks_exact(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let all = (all & 0xffff) + (all >> 16);
    ((all & 0xffff) + (all >> 16)) as u16
}

fn is_v4(header: &Header) -> bool {
    header[20] == 0x45 && sum(&header[20..]) == 0xffff
}

/// The addresses of who has sent it, and who has received it.
pub(crate) fn ends(header: &Header) -> [Raw; 2] {
    let mut both = [[0; 16]; 2];
    for (k, raw) in both.iter_mut().enumerate() {
        if is_v4(header) {
            raw[..12].copy_from_slice(&MAPPED);
            raw[12..].copy_from_slice(&header[32 + 4 * k..36 + 4 * k]);
        } else {
            raw.copy_from_slice(&header[8 + 16 * k..24 + 16 * k]);
        }
    }
    both
}

/// Puts others there. One that is not of IPv4 has no room in the header of that: it stays.
pub(crate) fn put(header: &mut Header, both: [Raw; 2]) {
    let v4 = is_v4(header);
    for (k, raw) in both.iter().enumerate() {
        if !v4 {
            header[8 + 16 * k..24 + 16 * k].copy_from_slice(raw);
        } else if raw[..12] == MAPPED {
            header[32 + 4 * k..36 + 4 * k].copy_from_slice(&raw[12..]);
        }
    }
    if v4 {
        header[30..32].fill(0);
        let now = !sum(&header[20..]);
        header[30..32].copy_from_slice(&now.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Raw {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
    }

    #[test]
    fn other_addresses_and_another_sum() {
        // The one of RFC 1071's kind that others compute: 10.0.0.9 to 10.0.0.1, with its sum.
        let mut header: Header = [7; 40];
        header[20..]
            .copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0x66, 0xa8, 10, 0, 0, 9, 10, 0, 0, 1]);
        assert_eq!(ends(&header), [v4(9), v4(1)]);
        put(&mut header, [v4(200), v4(1)]);
        assert_eq!(ends(&header), [v4(200), v4(1)]);
        assert_eq!(header[..20], [7; 20]);
        put(&mut header, [[0xfe; 16], v4(2)]);
        assert_eq!(ends(&header), [v4(200), v4(2)]);
    }

    #[test]
    fn a_header_of_ipv6_has_them_whole() {
        let mut header: Header = [0; 40];
        header[0] = 0x60;
        put(&mut header, [[1; 16], v4(2)]);
        assert_eq!(ends(&header), [[1; 16], v4(2)]);
        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 0, 0, 0]);
    }
}
