//! Classic BPF programs for netlink sockets: what is unwanted costs neither receive buffer nor a wake-up.
//!
//! The program sees each message with its netlink header. Loads convert from the network's byte order, netlink is in
//! the host's, so constants are converted likewise. A load behind the end of a message drops it. See
//! Documentation/networking/filter.rst.

use libc::sock_filter;

const TYPE: u32 = 4;
const PORT: u32 = 12;
const NDM_IFINDEX: u32 = 16 + 4;

const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn load_type() -> sock_filter {
    sock_filter { code: LOAD_HALF, jt: 0, jf: 0, k: TYPE }
}

fn load_word(at: u32) -> sock_filter {
    sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: at }
}

fn if_type(kind: u16, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: JUMP_IF_EQUAL, jt: then, jf: otherwise, k: kind.to_be().into() }
}

fn if_word(word: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: JUMP_IF_EQUAL, jt: then, jf: otherwise, k: word.to_be() }
}

fn keep() -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: u32::MAX }
}

fn discard() -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 }
}

/// Keeps the questions of one device to user space and nothing else.
pub(crate) fn misses(ifindex: u32) -> Vec<sock_filter> {
    vec![
        load_type(),
        if_type(libc::RTM_GETNEIGH, 0, 3),
        load_word(NDM_IFINDEX),
        if_word(ifindex, 0, 1),
        keep(),
        discard(),
    ]
}

/// Drops what the requests of `ports` caused, questions to user space, and neighbours and FDB rows of other devices.
pub(crate) fn changes(ifindex: u32, ports: &[u32]) -> Vec<sock_filter> {
    let mut program = vec![load_word(PORT)];
    for port in ports {
        program.extend([if_word(*port, 0, 1), discard()]);
    }
    program.extend([
        load_type(),
        if_type(libc::RTM_GETNEIGH, 5, 0),
        if_type(libc::RTM_NEWNEIGH, 1, 0),
        if_type(libc::RTM_DELNEIGH, 0, 2),
        load_word(NDM_IFINDEX),
        if_word(ifindex, 0, 1),
        keep(),
        discard(),
    ]);
    program
}
