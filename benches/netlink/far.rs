//! The two ends of a packet: a sender on the node, and a listener that takes what arrives encapsulated.
//!
//! Times are the kernel's: `SO_TIMESTAMPNS` is taken as the packet enters the far namespace, so that waking the
//! listener's thread is not counted and nobody has to spin.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use twill_lab::Namespace;

use crate::peers::Peer;

/// flannel's VXLAN port.
const PORT: u16 = 8472;
/// Where packets to pods go; nobody listens.
const DISCARD: u16 = 9;
/// Room for all packets of a burst, so that neither end drops any by itself.
const BUFFER: usize = 128 << 20;
/// The kernel asks for an address three times, a second apart, and then drops what waited.
pub(crate) const GIVEN_UP: Duration = Duration::from_millis(3_500);
/// VXLAN, Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 8 + 14 + 20 + 8;

/// Time since the epoch, on the clock of the kernel's packet timestamps.
pub(crate) fn now() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?))
}

/// Sends to pods of peers from one node.
pub(crate) struct Sender(UdpSocket);

impl Sender {
    pub(crate) fn open(node: &Namespace) -> Result<Self> {
        let socket = node.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        // Waiting packets are charged to the socket, which would slow the sender down. Those of pods are not.
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER)?;
        Ok(Self(socket))
    }

    /// Sends a packet with the peer's number in it. A failure is a lost packet, which is what is counted.
    pub(crate) fn send(&self, peer: Peer) {
        let _ = self.0.send_to(&peer.0.to_be_bytes(), (peer.pod(), DISCARD));
    }
}

/// Takes what is encapsulated for the peers' underlay address.
pub(crate) struct Far(UdpSocket);

impl Far {
    pub(crate) fn open(fabric: &Namespace) -> Result<Self> {
        let socket = fabric.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        socket.set_read_timeout(Some(GIVEN_UP))?;
        Ok(Self(socket))
    }

    /// The next packet with a peer's number, and when it arrived; `None` if none comes within [`GIVEN_UP`].
    pub(crate) fn receive(&self) -> Result<Option<(Peer, Duration)>> {
        loop {
            let mut bytes = [0; 2048];
            let mut control = cmsg_space!(TimeSpec);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
            let (length, at) = match received {
                Ok(message) => {
                    let stamp = message.cmsgs()?.find_map(|part| match part {
                        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
                        _ => None,
                    });
                    (message.bytes, stamp.context("a packet without a timestamp")?)
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            // The device also sends packets of its own, such as router solicitations.
            if let Some(&number) = bytes[..length].get(HEADERS..).and_then(|payload| payload.first_chunk::<4>())
                && length == HEADERS + 4
            {
                return Ok(Some((Peer(u32::from_be_bytes(number)), at)));
            }
        }
    }
}
