//! A small database in MaxMind's format (MaxMind DB File Format Specification 2.0): IPv4, 24-bit records, places only.

use std::net::Ipv4Addr;

/// Nodes whose children are a node, data or nothing.
#[derive(Clone, Copy)]
enum Child {
    Empty,
    Node(usize),
    Data(usize),
}

/// A database that knows where these addresses are (degrees north and east).
pub fn database(places: &[(Ipv4Addr, f64, f64)]) -> Vec<u8> {
    let (mut nodes, mut data) = (vec![[Child::Empty; 2]], Vec::new());
    for (ip, north, east) in places {
        let offset = data.len();
        map(1, &mut data);
        text("location", &mut data);
        map(2, &mut data);
        for (name, degrees) in [("latitude", north), ("longitude", east)] {
            text(name, &mut data);
            data.push(3 << 5 | 8);
            data.extend_from_slice(&degrees.to_be_bytes());
        }
        let mut at = 0;
        for depth in 0..32 {
            let bit = (ip.to_bits() >> (31 - depth)) as usize & 1;
            at = match nodes[at][bit] {
                _ if depth == 31 => {
                    nodes[at][bit] = Child::Data(offset);
                    break;
                }
                Child::Node(next) => next,
                _ => {
                    nodes.push([Child::Empty; 2]);
                    let next = nodes.len() - 1;
                    nodes[at][bit] = Child::Node(next);
                    next
                }
            };
        }
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for child in nodes.into_iter().flatten() {
        let record = match child {
            Child::Empty => count,
            Child::Node(at) => at,
            Child::Data(offset) => count + 16 + offset,
        };
        file.extend_from_slice(&(record as u32).to_be_bytes()[1..]);
    }
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(&data);
    file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    metadata(count as u32, &mut file);
    file
}

fn metadata(nodes: u32, out: &mut Vec<u8>) {
    map(9, out);
    for (name, value) in [
        ("binary_format_major_version", 2u16),
        ("binary_format_minor_version", 0),
        ("ip_version", 4),
        ("record_size", 24),
    ] {
        text(name, out);
        out.push(5 << 5 | 2);
        out.extend_from_slice(&value.to_be_bytes());
    }
    text("node_count", out);
    out.push(6 << 5 | 4);
    out.extend_from_slice(&nodes.to_be_bytes());
    text("build_epoch", out);
    // Types above 7 are written with a second byte.
    out.extend_from_slice(&[8, 9 - 7]);
    out.extend_from_slice(&1_700_000_000u64.to_be_bytes());
    text("database_type", out);
    text("Test-City", out);
    text("languages", out);
    out.extend_from_slice(&[0, 11 - 7]);
    text("description", out);
    map(0, out);
}

fn map(pairs: u8, out: &mut Vec<u8>) {
    out.push(7 << 5 | pairs);
}

fn text(text: &str, out: &mut Vec<u8>) {
    assert!(text.len() < 29);
    out.push(2 << 5 | text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}
