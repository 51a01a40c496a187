//! What plugins do, in Prometheus' form: one collector over the policies of a process.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::{BreakerState, Class, Generation, Policy, Statistics};

/// Policies that are exported; further ones are not.
const MAX_POLICIES: usize = 2048;

/// The slots whose figures are exported.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<crate::Registry>);

/// Figures of one policy's active generation and candidate together. They begin anew when a generation takes over.
struct Row {
    plugin: Arc<str>,
    world: &'static str,
    statistics: Vec<Statistics>,
    counters: Vec<(Box<str>, u64)>,
    log: (u64, u64),
    open: bool,
    generation: u64,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;
type Family = (&'static str, &'static str, fn(&Statistics) -> u64);

const COUNTERS: [Family; 3] = [
    ("scaleup_plugin_decisions", "Calls of the plugin.", |read| read.decisions),
    ("scaleup_plugin_fuel", "Instructions that the plugin executed, where they are counted.", |read| read.fuel),
    ("scaleup_plugin_differences", "Calls in the shadow with another answer than the active generation's.", |read| {
        read.differences
    }),
];

impl Metrics {
    /// Registers the families, of all slots that are ever in `plugins`.
    pub fn register(registry: &mut Registry, plugins: Arc<crate::Registry>) {
        registry.register_collector(Box::new(Self(plugins)));
    }

    fn rows(&self) -> Vec<Row> {
        self.0.slots().iter().take(MAX_POLICIES).map(|(_, slot)| row(&slot.policy)).collect()
    }
}

fn row(policy: &Policy) -> Row {
    let all = policy.generations();
    let candidate = all.candidate.as_ref().map(|(candidate, _)| candidate);
    let generations: Vec<&Arc<Generation>> = all.active.iter().chain(candidate).collect();
    let active = all.active.as_ref();
    Row {
        plugin: policy.name().clone(),
        world: policy.world().name(),
        statistics: generations.iter().map(|generation| generation.statistics()).collect(),
        counters: active.map(|active| active.counters()).unwrap_or_default(),
        log: generations.iter().map(|one| one.log_lines()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        open: active.is_none_or(|active| active.breaker() != BreakerState::Closed),
        generation: active.map_or(0, |active| active.number()),
    }
}

impl Row {
    fn sum(&self, of: impl Fn(&Statistics) -> u64) -> u64 {
        self.statistics.iter().map(of).sum()
    }

    fn labels(&self) -> Labels<'_> {
        vec![("plugin", &self.plugin), ("world", self.world)]
    }

    fn with<'a>(&'a self, name: &'static str, value: &'a str) -> Labels<'a> {
        vec![("plugin", &self.plugin), (name, value)]
    }
}

fn family<'a, T: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&'static str, &'static str, Option<&Unit>),
    kind: MetricType,
    values: impl Iterator<Item = (Labels<'a>, T)>,
) -> fmt::Result {
    let mut encoder = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in values {
        value.encode(encoder.encode_family(&labels.as_slice())?)?;
    }
    Ok(())
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let (encoder, rows) = (&mut encoder, self.rows());
        for (name, help, of) in COUNTERS {
            let values = rows.iter().map(|row| (row.labels(), ConstCounter::new(row.sum(of))));
            family(encoder, (name, help, None), MetricType::Counter, values)?;
        }
        let errors = rows.iter().flat_map(|row| {
            let error = |class: Class| {
                (row.with("class", class.name()), ConstCounter::new(row.sum(|read| read.errors[class as usize])))
            };
            Class::ALL.map(error)
        });
        family(encoder, ("scaleup_plugin_errors", "Calls that failed.", None), MetricType::Counter, errors)?;
        let own = rows.iter().flat_map(|row| {
            row.counters.iter().map(|(name, count)| (row.with("name", name), ConstCounter::new(*count)))
        });
        family(encoder, ("scaleup_plugin_counter", "The plugin's own counters.", None), MetricType::Counter, own)?;
        let cpu = rows.iter().map(|row| {
            let cpu: f64 = row.statistics.iter().map(|read| read.cpu.as_secs_f64()).sum();
            (row.labels(), ConstCounter::new(cpu))
        });
        let name = ("scaleup_plugin_cpu", "CPU time of the plugin's calls.", Some(&Unit::Seconds));
        family(encoder, name, MetricType::Counter, cpu)?;
        let lines = rows.iter().flat_map(|row| {
            let (written, dropped) = row.log;
            [("written", written), ("dropped", dropped)]
                .map(|(result, count)| (row.with("result", result), ConstCounter::new(count)))
        });
        family(
            encoder,
            ("scaleup_plugin_log_lines", "Lines that the plugin logged.", None),
            MetricType::Counter,
            lines,
        )?;
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let memory = rows.iter().map(|row| {
            let peak = row.statistics.iter().map(|read| read.peak_memory_bytes).max().unwrap_or(0);
            (row.labels(), gauge(peak))
        });
        let name = ("scaleup_plugin_memory_peak", "Most linear memory of an instance.", Some(&Unit::Bytes));
        family(encoder, name, MetricType::Gauge, memory)?;
        let open = rows.iter().map(|row| (row.labels(), gauge(u64::from(row.open))));
        let help = "1 while the plugin is not asked: it keeps failing, or there is none.";
        family(encoder, ("scaleup_plugin_breaker_open", help, None), MetricType::Gauge, open)?;
        let numbers = rows.iter().map(|row| (row.labels(), gauge(row.generation)));
        let help = "The generation that decides; 0 for none.";
        family(encoder, ("scaleup_plugin_generation", help, None), MetricType::Gauge, numbers)?;
        let help = "Time of the plugin's calls.";
        let mut encoder =
            encoder.encode_descriptor("scaleup_plugin_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for row in &rows {
            let mut buckets: Vec<(f64, u64)> = Vec::new();
            for read in &row.statistics {
                for (at, (bound, count)) in read.latency.doublings().enumerate() {
                    match buckets.get_mut(at) {
                        Some(bucket) => bucket.1 += count,
                        None => buckets.push((bound, count)),
                    }
                }
            }
            let seconds = row.statistics.iter().map(|read| read.cpu.as_secs_f64()).sum();
            let count = buckets.iter().map(|(_, count)| count).sum();
            buckets.push((f64::INFINITY, 0));
            encoder
                .encode_family(&row.labels().as_slice())?
                .encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;

    #[test]
    fn slots_that_are_gone_are_forgotten() {
        let (mut registry, plugins) = (Registry::default(), Arc::new(crate::Registry::default()));
        Metrics::register(&mut registry, plugins.clone());
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let slot = plugins.slot(&crate::PluginKey::namespaced("shop", "canary"), World::Routing);
        let read = text();
        for line in [
            r#"scaleup_plugin_decisions_total{plugin="shop/canary",world="routing"} 0"#,
            r#"scaleup_plugin_errors_total{plugin="shop/canary",class="invalid_output"} 0"#,
            r#"scaleup_plugin_breaker_open{plugin="shop/canary",world="routing"} 1"#,
        ] {
            assert!(read.contains(line), "{line} is not in\n{read}");
        }
        drop(slot);
        plugins.prune();
        assert!(!text().contains("shop/canary"));
    }
}
