//! Answers for the cluster's zone, by value (Kubernetes DNS-Based Service Discovery, version 1.1.0; RFC 1035, 2308).
//!
//! Pure: a query and a snapshot in, a response or "ask somebody else" out. Names that exist without the asked type give
//! NODATA, others NXDOMAIN, both with the zone's SOA.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::snapshot::{HostPlan, ServiceKey, ServicePlan, Snapshot};

/// Seconds an answer may be cached.
pub(super) const TTL: u32 = 5;
/// UDP payload we accept and announce (DNS flag day 2020: no fragments).
pub(super) const UDP_PAYLOAD: u16 = 1232;
/// Addresses in one answer at most.
const MAX_ANSWERS: usize = 500;
/// Aliases followed inside the zone for one answer.
const MAX_ALIASES: usize = 8;
/// `dns-version` record of the specification that is implemented.
const DNS_SCHEMA_VERSION: &str = "1.1.0";

/// What to do with a query.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Send this.
    Answer(Box<Message>),
    /// Not ours: ask another resolver.
    Forward,
    /// Ours up to an alias that leads outside: resolve it and append what comes back.
    Chase { partial: Box<Message>, target: Name },
    /// Not a query: say nothing.
    Drop,
}

/// The zone's names.
#[derive(Debug)]
pub(super) struct Zone {
    origin: Name,
    name_server: Name,
    hostmaster: Name,
    service_net: (u32, u32),
}

/// Result of looking a name up.
enum Found {
    /// The name does not exist.
    Nothing,
    /// The name exists; these are its records of the asked type.
    Records(Vec<RData>),
    /// The name is an alias.
    Alias(Name),
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ZoneError {
    #[error("the cluster domain is not a domain name")]
    Domain(#[source] hickory_proto::ProtoError),
    #[error("the service CIDR is not an IPv4 network")]
    Cidr,
}

impl Zone {
    pub fn new(domain: &str, service_cidr: &str) -> Result<Self, ZoneError> {
        let name = |prefix: &str| Name::from_ascii(format!("{prefix}{domain}.")).map_err(ZoneError::Domain);
        let (ip, length) = service_cidr.split_once('/').ok_or(ZoneError::Cidr)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| ZoneError::Cidr)?;
        let length: u32 = length.parse().ok().filter(|length| *length <= 32).ok_or(ZoneError::Cidr)?;
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        Ok(Self {
            origin: name("")?.to_lowercase(),
            name_server: name("ns.dns.")?,
            hostmaster: name("hostmaster.")?,
            service_net: (ip.to_bits() & mask, mask),
        })
    }

    /// Decides about `request`.
    pub fn answer(&self, request: &Message, snapshot: &Snapshot) -> Outcome {
        if request.metadata.message_type == MessageType::Response {
            return Outcome::Drop;
        }
        let mut response = response_to(request);
        if request.metadata.op_code != OpCode::Query {
            return with_code(response, ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return with_code(response, ResponseCode::BADVERS);
        }
        let [query] = &request.queries[..] else { return with_code(response, ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return with_code(response, ResponseCode::Refused);
        }
        if let Some(ip) = reverse_address(query.name()) {
            return self.answer_reverse(response, query, ip, snapshot);
        }
        if !self.origin.zone_of(query.name()) {
            return Outcome::Forward;
        }
        response.metadata.authoritative = true;
        match self.lookup(query, snapshot) {
            Found::Nothing => self.negative(response, ResponseCode::NXDomain),
            Found::Records(records) => self.positive(response, query, records),
            Found::Alias(target) => self.alias(response, query, target, snapshot),
        }
    }

    fn positive(&self, mut response: Message, query: &Query, records: Vec<RData>) -> Outcome {
        if records.is_empty() {
            return self.negative(response, ResponseCode::NoError);
        }
        for data in records {
            response.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
        }
        Outcome::Answer(Box::new(response))
    }

    fn negative(&self, mut response: Message, code: ResponseCode) -> Outcome {
        response.metadata.response_code = code;
        response.add_authority(Record::from_rdata(self.origin.clone(), TTL, RData::SOA(self.soa())));
        Outcome::Answer(Box::new(response))
    }

    fn alias(&self, mut response: Message, query: &Query, target: Name, snapshot: &Snapshot) -> Outcome {
        let kind = query.query_type();
        let (mut name, mut target) = (query.name().clone(), target);
        for _ in 0..MAX_ALIASES {
            response.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME {
                return Outcome::Answer(Box::new(response));
            }
            if !self.origin.zone_of(&target) {
                return Outcome::Chase { partial: Box::new(response), target };
            }
            // The code is that of the name at the end (RFC 6604 §3).
            match self.lookup(&Query::query(target.clone(), kind), snapshot) {
                Found::Nothing => return self.negative(response, ResponseCode::NXDomain),
                Found::Records(records) if records.is_empty() => {
                    return self.negative(response, ResponseCode::NoError);
                }
                Found::Records(records) => {
                    for data in records {
                        response.add_answer(Record::from_rdata(target.clone(), TTL, data));
                    }
                    return Outcome::Answer(Box::new(response));
                }
                Found::Alias(next) => (name, target) = (target, next),
            }
        }
        // Aliases in a circle.
        with_code(response, ResponseCode::ServFail)
    }

    fn answer_reverse(&self, mut response: Message, query: &Query, ip: IpAddr, snapshot: &Snapshot) -> Outcome {
        let names = self.names_of(ip, snapshot);
        let ours = match ip {
            IpAddr::V4(ip) => ip.to_bits() & self.service_net.1 == self.service_net.0,
            IpAddr::V6(_) => false,
        };
        if names.is_empty() && !ours {
            return Outcome::Forward;
        }
        response.metadata.authoritative = true;
        if names.is_empty() {
            return self.negative(response, ResponseCode::NXDomain);
        }
        let wanted = query.query_type() == RecordType::PTR;
        let records = names.into_iter().filter(|_| wanted).map(|name| RData::PTR(PTR(name))).collect();
        self.positive(response, query, records)
    }

    /// Names whose address is `ip`: a Service by its ClusterIP, a pod of a headless Service by its own.
    fn names_of(&self, ip: IpAddr, snapshot: &Snapshot) -> Vec<Name> {
        let mut names = Vec::new();
        for (key, plan) in &snapshot.services {
            if plan.cluster_ips.contains(&ip) {
                names.extend(self.service_name(key, None));
            } else if plan.headless {
                let hosts = plan.hosts.iter().filter(|host| host.ip == ip);
                names.extend(hosts.filter_map(|host| self.service_name(key, Some(&host_label(host)))));
            }
        }
        names.truncate(MAX_ANSWERS);
        names
    }

    fn service_name(&self, key: &ServiceKey, host: Option<&str>) -> Option<Name> {
        let prefix = host.map(|host| format!("{host}.")).unwrap_or_default();
        Name::from_ascii(format!("{prefix}{}.{}.svc.{}", key.name, key.namespace, self.origin)).ok()
    }

    fn lookup(&self, query: &Query, snapshot: &Snapshot) -> Found {
        let name = query.name().to_lowercase();
        let depth = usize::from(name.num_labels() - self.origin.num_labels());
        let labels: Option<Vec<&str>> = name.iter().take(depth).map(|label| std::str::from_utf8(label).ok()).collect();
        let Some(labels) = labels else { return Found::Nothing };
        let kind = query.query_type();
        match labels.as_slice() {
            [] => Found::Records(self.apex(kind)),
            ["dns-version"] => Found::Records(match kind {
                RecordType::TXT => vec![RData::TXT(TXT::new(vec![DNS_SCHEMA_VERSION.to_owned()]))],
                _ => Vec::new(),
            }),
            ["dns"] | ["ns", "dns"] | ["svc" | "pod"] => Found::Records(Vec::new()),
            [namespace, "svc"] | [namespace, "pod"] => exists(has_namespace(snapshot, namespace)),
            [ip, namespace, "pod"] if has_namespace(snapshot, namespace) => pod_record(ip, kind),
            [rest @ .., service, namespace, "svc"] => {
                let key = ServiceKey::new(namespace, service);
                match snapshot.services.get(&key) {
                    Some(plan) => self.service(plan, rest, kind),
                    None => Found::Nothing,
                }
            }
            _ => Found::Nothing,
        }
    }

    fn apex(&self, kind: RecordType) -> Vec<RData> {
        match kind {
            RecordType::SOA => vec![RData::SOA(self.soa())],
            RecordType::NS => vec![RData::NS(NS(self.name_server.clone()))],
            _ => Vec::new(),
        }
    }

    fn soa(&self) -> SOA {
        // The serial does not matter: nobody transfers this zone.
        SOA::new(self.name_server.clone(), self.hostmaster.clone(), 1, 7200, 1800, 86400, TTL)
    }

    /// Names at and below `SERVICE.NAMESPACE.svc`; `rest` is what stands before it.
    fn service(&self, plan: &ServicePlan, rest: &[&str], kind: RecordType) -> Found {
        if let Some(target) = &plan.external_name {
            let target = Name::from_ascii(format!("{}.", target.trim_end_matches('.')));
            return match (rest, target) {
                ([], Ok(target)) => Found::Alias(target),
                _ => Found::Nothing,
            };
        }
        match rest {
            [] if plan.headless => match kind {
                RecordType::SRV => Found::Records(self.srv(plan, |_, _| true)),
                _ => Found::Records(addresses(plan.hosts.iter().map(|host| host.ip), kind)),
            },
            [] => match kind {
                RecordType::SRV => Found::Records(self.srv(plan, |_, _| true)),
                _ => Found::Records(addresses(plan.cluster_ips.iter().copied(), kind)),
            },
            [host] if plan.headless => {
                let mut hosts = plan.hosts.iter().filter(|candidate| host_label(candidate) == *host).peekable();
                if hosts.peek().is_none() {
                    // `_tcp.SERVICE` is an empty name between the Service and its SRV records.
                    return exists(is_protocol_label(plan, host));
                }
                Found::Records(addresses(hosts.map(|host| host.ip), kind))
            }
            [protocol] => exists(is_protocol_label(plan, protocol)),
            [port, protocol] => {
                let matches = |name: &str, port_protocol: &str| {
                    port.strip_prefix('_') == Some(name) && protocol.strip_prefix('_') == Some(port_protocol)
                };
                if !plan.ports.iter().any(|port| matches(&port.name, port.protocol.as_str())) {
                    return Found::Nothing;
                }
                Found::Records(if kind == RecordType::SRV { self.srv(plan, matches) } else { Vec::new() })
            }
            _ => Found::Nothing,
        }
    }

    /// SRV records of the named ports that `wanted` (port name, protocol) selects.
    fn srv(&self, plan: &ServicePlan, wanted: impl Fn(&str, &str) -> bool) -> Vec<RData> {
        let mut records = Vec::new();
        let ports = plan.ports.iter().filter(|port| !port.name.is_empty());
        for port in ports.filter(|port| wanted(&port.name, port.protocol.as_str())) {
            if plan.headless {
                for host in plan.hosts.iter().take(MAX_ANSWERS) {
                    let number = host.ports.iter().find(|(name, _)| *name == port.name).map(|(_, number)| *number);
                    if let (Some(number), Some(target)) =
                        (number, self.service_name(&plan.key, Some(&host_label(host))))
                    {
                        records.push(RData::SRV(SRV::new(0, 100, number, target)));
                    }
                }
            } else if let Some(target) = self.service_name(&plan.key, None) {
                records.push(RData::SRV(SRV::new(0, 100, port.port, target)));
            }
        }
        records
    }
}

/// An empty response with the query's identity; the EDNS part is ours.
pub(super) fn response_to(request: &Message) -> Message {
    let mut response = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.add_queries(request.queries.iter().take(1).cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD).set_version(0);
        response.set_edns(edns);
    }
    response
}

fn with_code(mut response: Message, code: ResponseCode) -> Outcome {
    response.metadata.response_code = code;
    Outcome::Answer(Box::new(response))
}

fn exists(yes: bool) -> Found {
    if yes { Found::Records(Vec::new()) } else { Found::Nothing }
}

fn has_namespace(snapshot: &Snapshot, namespace: &str) -> bool {
    let first = ServiceKey::new(namespace, "");
    snapshot.services.range(first..).next().is_some_and(|(key, _)| &*key.namespace == namespace)
}

fn is_protocol_label(plan: &ServicePlan, label: &str) -> bool {
    let protocol = label.strip_prefix('_');
    plan.ports.iter().any(|port| !port.name.is_empty() && protocol == Some(port.protocol.as_str()))
}

fn addresses(ips: impl Iterator<Item = IpAddr>, kind: RecordType) -> Vec<RData> {
    let record = |ip| match (ip, kind) {
        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(ip))),
        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(ip))),
        _ => None,
    };
    ips.filter_map(record).take(MAX_ANSWERS).collect()
}

/// `10-244-0-5.NAMESPACE.pod`: the address is in the name.
fn pod_record(label: &str, kind: RecordType) -> Found {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    let ip = v4.or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6));
    match ip {
        Some(ip) => Found::Records(addresses([ip].into_iter(), kind)),
        None => Found::Nothing,
    }
}

/// The label of a headless Service's endpoint: its hostname, else its dashed address.
fn host_label(host: &HostPlan) -> String {
    match &host.hostname {
        Some(hostname) => hostname.to_ascii_lowercase(),
        None => host.ip.to_string().replace(['.', ':'], "-"),
    }
}

/// The address a complete reverse name stands for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let mut fqdn = name.clone();
    fqdn.set_fqdn(true);
    let labels = usize::from(fqdn.num_labels());
    let net = fqdn.parse_arpa_name().ok()?;
    (labels == 6 || labels == 34).then(|| net.addr())
}
