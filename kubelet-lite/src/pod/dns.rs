//! `/etc/resolv.conf` and `/etc/hosts` of a pod (`network/dns/dns.go`, `kubelet_pods.go`). Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::spec::hostname;
use super::view;

/// Bounds of `resolv.conf` that upstream enforces.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH_PATHS: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// What `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// `nameserver`
    pub servers: Vec<String>,
    /// `search`
    pub searches: Vec<String>,
    /// `options`
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads the host's `resolv.conf`. Loopback servers are dropped where the pod has a network of its own: they are not
    /// there in it.
    pub fn parse_host(text: &str, own_network: bool) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => out.searches = words.map(str::to_owned).collect(),
                Some("options") => out.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        let is_loopback = |s: &String| s.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if own_network {
            out.servers.retain(|s| !is_loopback(s));
        }
        out
    }

    /// The file.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.servers {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }

    fn bounded(mut self) -> Self {
        self.servers.truncate(MAX_NAMESERVERS);
        self.searches.truncate(MAX_SEARCH_PATHS);
        let mut chars = 0;
        self.searches.retain(|s| {
            chars += s.len() + 1;
            chars <= MAX_SEARCH_CHARS
        });
        self
    }
}

/// What a pod's `dnsPolicy` and `dnsConfig` make of the cluster's DNS and the host's.
pub fn resolver(pod: &Pod, cluster_dns: Option<IpAddr>, cluster_domain: &str, host: &str) -> Resolver {
    let spec = view::spec(pod);
    let on_host = spec.host_network == Some(true);
    let of_host = Resolver::parse_host(host, !on_host);
    let policy = match spec.dns_policy.as_deref() {
        // A pod on the host's network gets cluster DNS only if it asks for it by name.
        Some("ClusterFirst") | None if on_host => "Default",
        Some("ClusterFirst" | "ClusterFirstWithHostNet") | None => "ClusterFirst",
        Some(other) => other,
    };
    let mut out = match (policy, cluster_dns) {
        ("None", _) => Resolver::default(),
        ("ClusterFirst", Some(server)) => {
            let namespace = view::namespace(pod);
            let mut searches = vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            searches.extend(of_host.searches);
            Resolver { servers: vec![server.to_string()], searches, options: vec!["ndots:5".into()] }
        }
        _ => of_host,
    };
    if let Some(config) = &spec.dns_config {
        let extend = |into: &mut Vec<String>, from: &Option<Vec<String>>| {
            for item in from.iter().flatten() {
                if !into.contains(item) {
                    into.push(item.clone());
                }
            }
        };
        extend(&mut out.servers, &config.nameservers);
        extend(&mut out.searches, &config.searches);
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            out.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            out.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    out.bounded()
}

/// `/etc/hosts` of a pod. On the host's network it is the host's with the aliases added.
pub fn hosts(pod: &Pod, address: Option<IpAddr>, cluster_domain: &str, host: &str) -> String {
    let spec = view::spec(pod);
    let mut out = if spec.host_network == Some(true) {
        format!("# Kubernetes-managed hosts file (host network).\n{host}")
    } else {
        let mut out = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        if let Some(address) = address {
            let name = hostname(pod);
            match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
                Some(subdomain) => {
                    let domain = format!("{subdomain}.{}.svc.{cluster_domain}", view::namespace(pod));
                    out.push_str(&format!("{address}\t{name}.{domain}\t{name}\n"));
                }
                None => out.push_str(&format!("{address}\t{name}\n")),
            }
        }
        out
    };
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            out.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOST: &str = "# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch corp.example\noptions edns0\n";

    fn check(spec: serde_json::Value, want: &str) {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "web"}, "spec": spec})).unwrap();
        let dns = Some("10.244.0.1".parse().unwrap());
        assert_eq!(resolver(&pod, dns, "cluster.local", HOST).render(), want);
    }

    #[test]
    fn policies() {
        check(
            json!({"containers": []}),
            "search web.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.244.0.1\noptions ndots:5\n",
        );
        check(
            json!({"containers": [], "dnsPolicy": "Default"}),
            "search corp.example\nnameserver 9.9.9.9\noptions edns0\n",
        );
        check(
            json!({"containers": [], "hostNetwork": true}),
            "search corp.example\nnameserver 127.0.0.53\nnameserver 9.9.9.9\noptions edns0\n",
        );
        check(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n",
        );
        check(
            json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            "search web.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.244.0.1\noptions ndots:1\n",
        );
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "web"}, "spec": {
            "containers": [], "subdomain": "db", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}}))
        .unwrap();
        let got = hosts(&pod, Some("10.0.0.5".parse().unwrap()), "cluster.local", "");
        assert!(got.contains("10.0.0.5\tp.db.web.svc.cluster.local\tp\n"), "{got}");
        assert!(got.contains("1.2.3.4\ta\tb\n"), "{got}");
    }
}
