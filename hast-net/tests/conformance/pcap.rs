//! Just enough of pcap, Ethernet, IPv4 and TCP to get streams out of a capture of two machines.

use std::collections::BTreeMap;

/// One direction of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    pub(crate) source: ([u8; 4], u16),
    pub(crate) destination: ([u8; 4], u16),
}

/// What each flow carried, in the order in which the flows began. Segments that came twice or out of order
/// are put right; a gap is a panic.
pub(crate) fn streams(capture: &[u8]) -> Vec<(Flow, Vec<u8>)> {
    assert_eq!(capture[..4], [0xd4, 0xc3, 0xb2, 0xa1], "little-endian, microseconds");
    assert_eq!(u32::from_le_bytes(capture[20..24].try_into().unwrap()), 1, "Ethernet");
    let mut order = Vec::new();
    let mut segments = BTreeMap::<Flow, (u32, Vec<(u32, Vec<u8>)>)>::new();
    let mut rest = &capture[24..];
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let (flow, sequence, syn, data) = segment(&rest[16..16 + length]);
        rest = &rest[16 + length..];
        if syn {
            order.push(flow);
            segments.insert(flow, (sequence.wrapping_add(1), Vec::new()));
        } else if let Some((first, seen)) = segments.get_mut(&flow)
            && !data.is_empty()
        {
            // (A bare acknowledgement after the end counts the end as a byte.)
            seen.push((sequence.wrapping_sub(*first), data.to_vec()));
        }
    }
    order.into_iter().map(|flow| (flow, joined(segments.remove(&flow).unwrap().1))).collect()
}

/// Flow, sequence number, SYN, and data of one packet.
fn segment(packet: &[u8]) -> (Flow, u32, bool, &[u8]) {
    assert_eq!(packet[12..14], [0x08, 0x00], "IPv4");
    let ip = &packet[14..];
    assert_eq!(ip[9], 6, "TCP");
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let tcp = &ip[header..total];
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let flow = Flow {
        source: (ip[12..16].try_into().unwrap(), port(0)),
        destination: (ip[16..20].try_into().unwrap(), port(2)),
    };
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    (flow, sequence, tcp[13] & 2 != 0, &tcp[usize::from(tcp[12] >> 4) * 4..])
}

/// Segments as one stream.
fn joined(mut segments: Vec<(u32, Vec<u8>)>) -> Vec<u8> {
    segments.sort_by_key(|(at, _)| *at);
    let mut stream = Vec::new();
    for (at, data) in segments {
        let known = stream.len().checked_sub(at as usize).expect("no segment is missing");
        stream.extend_from_slice(data.get(known..).unwrap_or_default());
    }
    stream
}

#[test]
fn segments_out_of_order_and_twice_are_put_right() {
    let segments = vec![(4, vec![4, 5, 6]), (0, vec![0, 1]), (1, vec![1, 2, 3, 4]), (0, vec![0])];
    assert_eq!(joined(segments), [0, 1, 2, 3, 4, 5, 6]);
}
