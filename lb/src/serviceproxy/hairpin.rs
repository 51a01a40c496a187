//! Lets pods reach themselves through a Service.
//!
//! Where bridged packets pass netfilter, the kernel sends a redirected packet straight back through the bridge; a bridge
//! port refuses to send out what came in by it unless its hairpin mode is on. Docker leaves it off, so it is turned on
//! here for the ports of the pod subnet's bridge. Changes nothing else.

use std::net::Ipv4Addr;
use std::path::Path;

/// Kernel routing table (IPv4).
const ROUTES: &str = "/proc/net/route";
/// Network interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Turns hairpin mode on for all ports of the bridge that `pod_cidr` is routed to. A port that vanishes meanwhile does
/// not matter; new endpoints bring another call.
pub(super) async fn enable(pod_cidr: &str) {
    let Ok(routes) = tokio::fs::read_to_string(ROUTES).await else { return };
    let Some(interface) = interface_of(&routes, pod_cidr) else { return };
    let Ok(mut ports) = tokio::fs::read_dir(Path::new(INTERFACES).join(interface).join("brif")).await else { return };
    while let Ok(Some(port)) = ports.next_entry().await {
        let mode = port.path().join("hairpin_mode");
        if tokio::fs::read(&mode).await.is_ok_and(|mode| mode.trim_ascii() == b"0")
            && let Err(error) = tokio::fs::write(&mode, b"1").await
        {
            tracing::debug!(port = ?port.file_name(), %error, "pods on this port cannot reach themselves by a Service");
        }
    }
}

/// The interface that the subnet `cidr` is directly reachable through, by the text of `/proc/net/route`. Pure.
fn interface_of<'a>(routes: &'a str, cidr: &str) -> Option<&'a str> {
    let (ip, length) = cidr.split_once('/')?;
    let ip = ip.parse::<Ipv4Addr>().ok()?.to_bits();
    let mask = u32::MAX.checked_shl(32 - length.parse::<u32>().ok().filter(|length| *length <= 32)?).unwrap_or(0);
    // Addresses are printed as the machine's integers of network-order bytes.
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(|raw| u32::from_be_bytes(raw.to_ne_bytes()));
    routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [interface, destination, gateway, _, _, _, _, route_mask, ..] = fields[..] else { return None };
        let direct = number(gateway)? == 0;
        (direct && number(destination)? == ip & mask && number(route_mask)? == mask).then_some(interface)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_bridge_is_found_by_its_route() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            br-1\t0000F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            br-2\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let check = |cidr: &str, expected: Option<&str>| assert_eq!(interface_of(routes, cidr), expected, "{cidr}");
        check("10.244.0.0/24", Some("br-1"));
        check("10.244.1.7/24", Some("br-2"));
        check("10.244.0.0/16", None);
        check("0.0.0.0/0", None);
        check("nonsense", None);
        assert_eq!(interface_of("", "10.244.0.0/24"), None);
    }
}
