//! `struct ifinfomsg`: the header of messages about links, and the attribute with a link's parameters per family.

/// Parameters of the link in each address family.
pub(crate) const IFLA_AF_SPEC: u16 = 26;

/// A header with nothing but an ifindex.
pub(crate) fn header(ifindex: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header
}
