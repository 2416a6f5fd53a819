//! The snapshot as Prometheus reads it, in the text form of OpenMetrics.
//!
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>. A new number is a field of the snapshot and an entry here.

use std::fmt;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::snapshot::{Family, Snapshot};

/// The content type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What all names begin with.
const PREFIX: &str = "twill";

/// One number of a metric, with its labels.
type Sample = (Vec<(&'static str, String)>, u64);

/// A metric: its kind, its name behind the prefix, what it means, its numbers.
type Metric = (MetricType, &'static str, &'static str, Vec<Sample>);

/// The snapshot as it is scraped.
pub(crate) fn text(snapshot: &Snapshot) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape { snapshot: snapshot.clone(), now: Instant::now() }));
    let mut text = String::new();
    // A string takes all that is written to it, and no name here is one that OpenMetrics forbids.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Scrape {
    snapshot: Snapshot,
    now: Instant,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = [self.of_node(), self.of_kernel(), self.of_repairs()];
        all.into_iter().flatten().try_for_each(|metric| encode_one(&mut encoder, metric))
    }
}

impl Scrape {
    fn of_node(&self) -> Vec<Metric> {
        let etcd = &self.snapshot.etcd;
        let version = vec![(vec![("version", crate::VERSION.to_owned())], 1)];
        vec![
            (Gauge, "build_info", "the version of twilld", version),
            (Gauge, "ready", "whether this node is ready", alone(self.snapshot.missing.is_empty())),
            (Gauge, "missing", "what is missing for being ready, by part of the work", self.missing()),
            (Gauge, "lease_seconds_left", "until this node's lease ends; none for a reservation", self.lease_left()),
            (Gauge, "etcd_up", "whether etcd answers", alone(etcd.down.is_none())),
            (Counter, "etcd_outages", "times that etcd ceased to answer", alone(etcd.outages)),
            (Counter, "etcd_listings", "complete reads of the records after that of the start", alone(etcd.listings)),
        ]
    }

    fn of_kernel(&self) -> Vec<Metric> {
        const PEERS: &str =
            "peers by state: absent (no packet asked for them), unreached (no way to their hosts), wanted, in_kernel";
        let each = |number: fn(&Family) -> u64| self.each(number);
        let in_step = self.each(|family| family.is_in_step);
        vec![
            (Gauge, "in_step", "whether the kernel has what the records want", in_step),
            (Gauge, "peers", PEERS, self.peers()),
            (Counter, "misses", "questions of the kernel, by kind and result", self.misses()),
            (Counter, "batches", "batches of operations sent to the kernel", each(|family| family.counts.batches)),
            (Counter, "operations", "operations sent to the kernel", each(|family| family.counts.operations)),
            (Counter, "operation_failures", "operations that failed", each(|family| family.counts.failures)),
            (Counter, "overruns", "times that kernel events came faster than they were read", each(|f| f.overruns)),
        ]
    }

    fn of_repairs(&self) -> Vec<Metric> {
        let peers = self.each(|family| family.counts.peers_mended);
        let comparisons = self.each(|family| family.counts.comparisons);
        let (devices, tables) = (self.each(|family| family.restores), alone(self.snapshot.nftables_restores));
        vec![
            (Counter, "mended_rows", "rows of other programs that contradicted the records", self.mended_rows()),
            (Counter, "mended_peers", "peers whose rows were missing or wrong and put again", peers),
            (Counter, "comparisons", "complete comparisons of the kernel with the records", comparisons),
            (Counter, "device_restores", "times that another program changed or deleted the device", devices),
            (Counter, "nftables_restores", "times that another program changed the nftables tables", tables),
        ]
    }
}

impl Scrape {
    fn missing(&self) -> Vec<Sample> {
        let mut parts: Vec<&str> = self.snapshot.missing.iter().map(|missing| missing.part.name()).collect();
        parts.sort_unstable();
        parts.dedup();
        parts.into_iter().map(|part| (vec![("part", part.to_owned())], 1)).collect()
    }

    fn lease_left(&self) -> Vec<Sample> {
        let ends = self.snapshot.lease.as_ref().and_then(|lease| lease.ends);
        ends.map(|ends| (Vec::new(), ends.saturating_duration_since(self.now).as_secs())).into_iter().collect()
    }

    /// A number of each device.
    fn each<N: Into<u64>>(&self, number: impl Fn(&Family) -> N) -> Vec<Sample> {
        self.snapshot.families.iter().map(|family| (vec![device(family)], number(family).into())).collect()
    }

    /// Several numbers of each device, each with labels of its own.
    fn labelled<const N: usize>(
        &self,
        numbers: impl Fn(&Family) -> Vec<([(&'static str, &'static str); N], u64)>,
    ) -> Vec<Sample> {
        let of_family = |family| {
            let labels = move |own: [(&'static str, &'static str); N]| {
                let own = own.map(|(name, value)| (name, value.to_owned()));
                [device(family)].into_iter().chain(own).collect::<Vec<_>>()
            };
            numbers(family).into_iter().map(move |(own, number)| (labels(own), number))
        };
        self.snapshot.families.iter().flat_map(of_family).collect()
    }

    fn peers(&self) -> Vec<Sample> {
        self.labelled(|family| {
            let tally = family.peers;
            let states = [
                ("absent", tally.absent),
                ("unreached", tally.unreached),
                ("wanted", tally.wanted),
                ("in_kernel", tally.in_kernel),
            ];
            states.map(|(state, count)| ([("state", state)], count as u64)).into()
        })
    }

    fn misses(&self) -> Vec<Sample> {
        self.labelled(|family| {
            let misses = family.counts.misses();
            misses.map(|(kind, result, count)| ([("kind", kind), ("result", result)], count)).collect()
        })
    }

    fn mended_rows(&self) -> Vec<Sample> {
        self.labelled(|family| family.counts.mended().map(|(kind, count)| ([("kind", kind)], count)).collect())
    }
}

fn device(family: &Family) -> (&'static str, String) {
    ("device", family.device.name.clone())
}

/// A metric of one number.
fn alone(number: impl Into<u64>) -> Vec<Sample> {
    vec![(Vec::new(), number.into())]
}

fn encode_one(encoder: &mut DescriptorEncoder<'_>, (kind, name, help, samples): Metric) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, number) in samples {
        let labels = labels.as_slice();
        let sample = metric.encode_family(&labels)?;
        match kind {
            Counter => ConstCounter::new(number).encode(sample)?,
            _ => ConstGauge::new(number).encode(sample)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Missing, Part};

    #[test]
    fn what_is_known_is_in_the_text() {
        let missing = [Part::Etcd, Part::Kernel, Part::Etcd].map(|part| Missing::new(part, "gone")).into();
        let mut snapshot = Snapshot { missing, ..Snapshot::default() };
        snapshot.etcd.down = Some("gone".to_owned());
        let text = text(&snapshot);
        for line in ["twill_ready 0", "twill_missing{part=\"etcd\"} 1", "twill_etcd_up 0", "twill_etcd_outages_total 0"]
        {
            assert_eq!(text.lines().filter(|there| *there == line).count(), 1, "{line} in {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
