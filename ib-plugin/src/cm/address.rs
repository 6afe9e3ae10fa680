//! Socket addresses of librdmacm's connections: as the application knows them, and as they are in this start. *Upper half*.
//!
//! What a reader would get wrong: an IP address is looked up among the addresses (GIDs) of ports, since on RoCE each of them is there
//! too. One that is not (of IPoIB, or of a host outside the job) is left as it is.

use crate::address::Raw;

/// `AF_INET`, `AF_INET6` and `AF_IB` (sys/socket.h, infiniband/ib.h).
const V4: u16 = 2;
const V6: u16 = 10;
const IB: u16 = 27;

/// The address in a socket address, as a GID (IPv4 as ::ffff:a.b.c.d, as RoCE has it). `None`: it has none, or it is any address.
pub(crate) fn raw(of: &[u8]) -> Option<Raw> {
    let mut raw = [0u8; 16];
    match super::wire::half(of, 0) {
        V4 => {
            raw[12..].copy_from_slice(of.get(4..8)?);
            // Any, or this host alone.
            if raw[12] == 127 || raw == [0; 16] {
                return None;
            }
            raw[10..12].fill(0xff);
        }
        V6 | IB => raw.copy_from_slice(of.get(8..24)?),
        _ => return None,
    }
    let mut local = [0; 16];
    local[15] = 1;
    (raw != [0; 16] && raw != local).then_some(raw)
}

/// Puts another address in its place. False: it is of another kind.
fn set(of: &mut [u8], to: &Raw) -> bool {
    match super::wire::half(of, 0) {
        V4 if to[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] => super::wire::put(of, 4, &to[12..]),
        V6 | IB => super::wire::put(of, 8, to),
        _ => return false,
    }
    true
}

/// Translates the address in there. `None`: nobody can tell what it is.
pub(crate) fn change(of: &mut [u8], how: impl FnOnce(&Raw) -> Option<Raw>) -> Option<()> {
    let Some(was) = raw(of) else { return Some(()) };
    let is = how(&was)?;
    (is == was || set(of, &is)).then_some(())
}

/// In network order, as it is.
pub(crate) fn port(of: &[u8]) -> u16 {
    super::wire::half(of, 2)
}

/// Family, port and address alone, for comparison: what else there is (flow, scope) the two ends see differently.
pub(crate) fn plain(of: &[u8]) -> Vec<u8> {
    let mut all = of.get(..4).unwrap_or_default().to_vec();
    all.extend(
        match super::wire::half(of, 0) {
            V4 => of.get(4..8),
            // A service id, beyond the address.
            IB => of.get(8..32),
            _ => of.get(8..24),
        }
        .unwrap_or_default(),
    );
    all
}

/// Without what is behind it in the room of one that is longer.
pub(crate) fn cut(of: &[u8]) -> Vec<u8> {
    let len = if super::wire::half(of, 0) == V4 { 16 } else { of.len() };
    of.get(..len).unwrap_or_default().to_vec()
}

/// Any address of its family, any port; `None`: no family of which there is one.
pub(crate) fn any(of: &[u8]) -> Option<Vec<u8>> {
    let family = super::wire::half(of, 0);
    let len = match family {
        V4 => 16,
        V6 => 28,
        _ => return None,
    };
    let mut all = vec![0; len];
    super::wire::put(&mut all, 0, &family.to_ne_bytes());
    Some(all)
}

/// The same address with another port.
pub(crate) fn with_port(of: &[u8], port: u16) -> Vec<u8> {
    let mut all = of.to_vec();
    super::wire::put(&mut all, 2, &port.to_ne_bytes());
    all
}

/// For people.
pub(crate) fn text(of: &[u8]) -> String {
    let port = u16::from_be(port(of));
    let bytes: Option<[u8; 16]> = of.get(8..24).and_then(|b| b.try_into().ok());
    match (super::wire::half(of, 0), bytes) {
        (V4, _) if of.len() >= 8 => format!("{}.{}.{}.{}:{port}", of[4], of[5], of[6], of[7]),
        (V6 | IB, Some(b)) => format!("[{}]:{port}", std::net::Ipv6Addr::from(b)),
        _ => "an unknown address".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8, port: u16) -> Vec<u8> {
        let mut a = vec![0; 16];
        a[..2].copy_from_slice(&V4.to_ne_bytes());
        a[2..4].copy_from_slice(&port.to_be_bytes());
        a[4..8].copy_from_slice(&[10, 0, 0, last]);
        a
    }

    #[test]
    fn addresses_are_changed_and_all_else_stays() {
        let mut a = v4(1, 18515);
        let mapped = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
        assert_eq!(change(&mut a, |raw| (*raw == mapped(1)).then_some(mapped(9))), Some(()));
        assert_eq!(a, v4(9, 18515));
        assert_eq!(text(&a), "10.0.0.9:18515");
        assert_eq!(change(&mut a, |_| None), None, "nobody can tell");
        assert_eq!(change(&mut a, |_| Some([0xfe; 16])), None, "of another kind");
        let mut six = vec![0; 28];
        six[..2].copy_from_slice(&V6.to_ne_bytes());
        assert_eq!(change(&mut six, |_| None), Some(()), "any address is none");
        six[8..24].copy_from_slice(&mapped(1));
        assert_eq!(change(&mut six, |_| Some([7; 16])), Some(()));
        assert_eq!(six[8..24], [7; 16]);
        let mut local = v4(1, 1);
        local[4..8].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(change(&mut local, |_| None), Some(()), "this host alone");
    }

    #[test]
    fn both_ends_compare_alike() {
        let mut a = vec![0; 28];
        a[..2].copy_from_slice(&V6.to_ne_bytes());
        a[8..24].fill(3);
        let mut b = a.clone();
        b[4] = 1;
        b[24] = 2;
        assert_eq!(plain(&a), plain(&b));
        assert_ne!(plain(&a), plain(&with_port(&a, 5)));
        assert_eq!(any(&b), Some([V6.to_ne_bytes().to_vec(), vec![0; 26]].concat()));
        assert_eq!(any(&[0; 28]), None);
    }
}
