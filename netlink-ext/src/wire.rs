//! Netlink's framing, written and read by hand: message headers and attributes, and no meaning.
//!
//! The typed encoders of netlink-packet-route allocate for each attribute. Batches of 100,000 messages and dumps of as
//! many rows go through here instead. Layout: `include/uapi/linux/netlink.h`; all numbers in the host's byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Error;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_LENGTH: usize = 0;
const NLMSG_FLAGS: usize = 6;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` share the field with the attribute's type.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Messages one behind the other, to be sent with one system call. The memory is kept from one use to the next.
#[derive(Debug, Default)]
pub(crate) struct Datagram {
    bytes: Vec<u8>,
    last: usize,
}

impl Datagram {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a message. `body` writes what stands behind the netlink header; the length is filled in after it.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.last = start;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]); // port 0: the kernel fills in the socket's
        body(&mut Body { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start + NLMSG_LENGTH..start + NLMSG_LENGTH + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Asks for an acknowledgement of the last message.
    pub(crate) fn acknowledge_last(&mut self) {
        let at = self.last + NLMSG_FLAGS;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | libc::NLM_F_ACK as u16;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// The part of a message behind its netlink header.
pub(crate) struct Body<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// A family's own header; its length has to be a multiple of four, as all of rtnetlink's are.
    pub(crate) fn header(&mut self, header: &[u8]) {
        self.bytes.extend_from_slice(header);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        const PADDING: [u8; 3] = [0; 3];
        self.bytes.extend_from_slice(&PADDING[..aligned(value.len()) - value.len()]);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub(crate) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    /// A string with the terminating zero that the kernel's `NLA_STRING` policies accept and iproute2 sends.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.attribute(kind, &[]);
        inner(&mut Body { bytes: self.bytes });
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What stands behind the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family's own header and the attributes behind it; `None` if the message is too short for the header.
    pub(crate) fn split<const N: usize>(&self) -> Option<(&'a [u8; N], Attributes<'a>)> {
        let (header, rest) = self.body.split_first_chunk::<N>()?;
        Some((header, Attributes { rest }))
    }
}

/// The messages of a received datagram.
#[derive(Debug, Clone)]
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }

    /// How many bytes are not read yet.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let length = u32_at(self.rest, NLMSG_LENGTH).map_or(0, |length| length as usize);
        if length < HEADER || length > self.rest.len() {
            self.rest = &[];
            return Some(Err(Error::Malformed { step: "read message", what: "length field does not fit" }));
        }
        let bytes = &self.rest[..length];
        self.rest = &self.rest[aligned(length).min(self.rest.len())..];
        Some(Ok(Message {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            body: &bytes[HEADER..],
        }))
    }
}

/// The attributes of a message or of a nested attribute, as type and value. Ends where the bytes stop making sense,
/// which is what the kernel's own `nla_for_each_attr` does.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, _) = self.rest.split_first_chunk::<4>()?;
        let length = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let kind = u16::from_ne_bytes([head[2], head[3]]) & ATTRIBUTE_TYPE_MASK;
        if length < 4 || length > self.rest.len() {
            self.rest = &[];
            return None;
        }
        let value = &self.rest[4..length];
        self.rest = &self.rest[aligned(length).min(self.rest.len())..];
        Some((kind, value))
    }
}

/// An address whose family is told by its length, as in `NDA_DST`.
pub(crate) fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// A whole attribute as a number.
pub(crate) fn u32_value(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A number inside a struct.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    u32_value(bytes.get(at..at + 4)?)
}

/// A string without its terminating zero.
pub(crate) fn string(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut datagram = Datagram::default();
        datagram.message(28, 1, 7, |body| {
            body.header(&[2, 0, 0, 0]);
            body.attribute(2, &[1, 2, 3, 4, 5, 6]);
            body.nested(6, |inner| inner.u32(1, 9));
        });
        datagram.message(29, 1, 8, |body| body.header(&[0; 4]));
        datagram.acknowledge_last();
        let messages: Vec<_> = Messages::new(datagram.bytes()).map(Result::unwrap).collect();
        assert_eq!((messages[0].kind, messages[0].flags, messages[0].sequence), (28, 1, 7));
        assert_eq!((messages[1].kind, messages[1].flags, messages[1].sequence), (29, 5, 8));
        let (header, attributes) = messages[0].split::<4>().unwrap();
        assert_eq!(header, &[2, 0, 0, 0]);
        let attributes: Vec<_> = attributes.collect();
        assert_eq!(attributes[0], (2, &[1, 2, 3, 4, 5, 6][..]));
        assert_eq!(Attributes::new(attributes[1].1).next(), Some((1, &9_u32.to_ne_bytes()[..])));
    }

    #[test]
    fn cut_bytes_end_the_reading_and_never_panic() {
        let mut datagram = Datagram::default();
        datagram.message(28, 1, 7, |body| {
            body.header(&[0; 12]);
            body.attribute(1, &[10, 0, 0, 1]);
        });
        for cut in 1..datagram.bytes().len() {
            assert!(Messages::new(&datagram.bytes()[..cut]).next().unwrap().is_err());
            Attributes::new(&datagram.bytes()[cut..]).for_each(drop);
        }
        assert!(Attributes::new(&[3, 0, 1, 0]).next().is_none());
        assert_eq!(address(&[1, 2, 3]), None);
    }
}
