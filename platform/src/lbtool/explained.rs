//! An explanation as text. Pure.

use std::fmt::Write;

use serde_json::Value;

/// Printable text of a value.
fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().filter(|c| !c.is_control()).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn list(value: &Value) -> String {
    items(value).map(text).collect::<Vec<_>>().join("; ")
}

/// The explanation, a line per fact.
pub fn render(said: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "{name:<10} {value}");
    };
    let mut facts = |name: &str, value: &Value| {
        if items(value).next().is_some() {
            line(name, list(value));
        }
    };
    let fact = |value: &Value| Value::Array(vec![value.clone()]);
    facts("request", &fact(&said["request"]));
    facts("verdict", &fact(&said["verdict"]));
    facts("listener", &fact(&said["listener"]));
    facts("also asked", &said["lost"]);
    let rule = &said["rule"];
    if rule.is_object() {
        facts("rule", &fact(&Value::String(format!("{} (the path {})", text(&rule["name"]), text(&rule["path"])))));
        facts("filters", &rule["filters"]);
        facts("policies", &rule["policies"]);
        facts("limits", &rule["limits"]);
    }
    let plugin = &said["plugin"];
    if plugin.is_object() {
        let (name, decision) = (text(&plugin["name"]), text(&plugin["decision"]));
        line("plugin", format!("{name} generation {}: {decision}", text(&plugin["generation"])));
    }
    for near in items(&said["near"]) {
        line("near", format!("{}: {}", text(&near["rule"]), list(&near["why"])));
    }
    for backend in items(&said["backends"]) {
        let share = backend["share_percent"].as_f64().unwrap_or(0.0);
        line(
            "backend",
            format!("{} gets {share:.0} %, endpoints {}", text(&backend["service"]), text(&backend["algorithm"])),
        );
        if items(&backend["policies"]).next().is_some() {
            line("", format!("policies {}", list(&backend["policies"])));
        }
        for endpoint in items(&backend["endpoints"]) {
            let mark = if endpoint["chosen"] == true { "=>" } else { "  " };
            let (address, zone, node) = (text(&endpoint["address"]), text(&endpoint["zone"]), text(&endpoint["node"]));
            let (health, in_flight) = (text(&endpoint["health"]), text(&endpoint["in_flight"]));
            line("", format!("{mark} {address} zone {zone} node {node}: {health}, {in_flight} in flight"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_explanation_is_readable() {
        let said = json!({"request": "GET http://a:80/ from 192.0.2.1", "verdict": "It would be sent to 10.0.0.1:80.",
            "listener": "80/TCP for Gateway infra/public", "lost": [],
            "rule": {"name": "HTTPRoute shop/web rule 0", "path": "begins with /", "filters": [], "policies": ["shop/p"], "limits": []},
            "plugin": {"name": "shop/canary", "generation": 3, "decision": "pick", "status": null},
            "near": [], "backends": [{"service": "shop/web:80", "share_percent": 75.0, "algorithm": "in turn", "policies": [],
                "endpoints": [{"address": "10.0.0.1:80", "zone": null, "node": "n1\u{1b}[2J", "health": "healthy", "in_flight": 2, "chosen": true}]}]});
        let expected = "\
request    GET http://a:80/ from 192.0.2.1
verdict    It would be sent to 10.0.0.1:80.
listener   80/TCP for Gateway infra/public
rule       HTTPRoute shop/web rule 0 (the path begins with /)
policies   shop/p
plugin     shop/canary generation 3: pick
backend    shop/web:80 gets 75 %, endpoints in turn
           => 10.0.0.1:80 zone - node n1[2J: healthy, 2 in flight
";
        assert_eq!(render(&said), expected);
    }
}
