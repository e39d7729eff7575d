//! `track` of a virtual router: what decides, besides VRRP, whether a host may hold the addresses.

use std::{collections::BTreeMap, num::NonZeroU8};

use crate::{
    NodeName, Track, TrackProxy,
    read::vip::interface,
    reader::{Table, Value, quote},
};

/// What is known of the hosts of a virtual router when a weight is judged.
pub(super) struct Group<'a> {
    /// The priority of this host.
    pub(super) own: NonZeroU8,
    /// Those of all hosts, where the file names them.
    pub(super) all: &'a BTreeMap<NodeName, NonZeroU8>,
    pub(super) preempt: bool,
}

pub(super) fn track(
    table: &mut Table<'_>,
    interface_of_vip: Option<&str>,
    group: Option<&Group<'_>>,
) -> Track {
    let own = || interface_of_vip.map(str::to_owned).into_iter().collect();
    let default = || Track { proxy: TrackProxy::Release, interfaces: own() };
    let Some(value) = table.get("track") else { return default() };
    let title = format!("`track` of {}", table.title());
    let Some(mut track) = value.table("vips.track", title, "{ proxy = \"release\" }") else {
        return default();
    };
    let proxy = track.get("proxy").and_then(|value| track_proxy(value, group));
    let interfaces = match track.get("interfaces") {
        Some(value) => {
            value.list("[\"eth0\"]").unwrap_or_default().into_iter().filter_map(interface).collect()
        }
        None => own(),
    };
    track.finish();
    Track { proxy: proxy.unwrap_or(TrackProxy::Release), interfaces }
}

/// `release`, `ignore`, or a negative weight that can make a difference.
fn track_proxy(value: Value<'_>, group: Option<&Group<'_>>) -> Option<TrackProxy> {
    if !value.is_integer() {
        let written = value.string("\"release\"")?;
        return match written {
            "release" => Some(TrackProxy::Release),
            "ignore" => Some(TrackProxy::Ignore),
            _ => {
                value.unknown_word(written, ["release", "ignore"].into_iter());
                None
            }
        };
    }
    let weight = value.signed().unwrap_or(0);
    let lower =
        u8::try_from(weight.unsigned_abs()).ok().filter(|lower| *lower < 254).and_then(NonZeroU8::new);
    let Some(lower) = lower.filter(|_| weight < 0) else {
        let message = format!("`proxy` cannot be {weight}");
        value.error(message, "write a weight from -1 to -253, \"release\" or \"ignore\"");
        return None;
    };
    if let Some(group) = group {
        judge(value, lower.get(), group);
    }
    Some(TrackProxy::Lower(lower))
}

/// Weights that look right and do nothing are what people lose addresses by: each is refused, with the arithmetic.
fn judge(value: Value<'_>, lower: u8, group: &Group<'_>) {
    if !group.preempt {
        value.error(
            format!("-{lower} never moves the addresses with preempt = false"),
            "write \"release\", so that a sick host lets go by itself, or preempt = true: without preemption nobody \
             takes the addresses from a host that still sends adverts, however low its priority",
        );
        return;
    }
    let owner = group.all.iter().find(|(_, priority)| priority.get() == 255);
    if owner.is_some() || group.own.get() == 255 {
        let who = owner.map_or_else(|| "this host".to_owned(), |(name, _)| quote(name.as_str()));
        value.error(
            format!("-{lower} does nothing on {who}: priority 255 owns the addresses, and is never lowered"),
            "write a priority from 1 to 254, or proxy = \"ignore\"",
        );
        return;
    }
    let mut hosts: Vec<_> = group.all.iter().map(|(name, priority)| (priority.get(), name)).collect();
    hosts.sort_unstable_by(|a, b| b.cmp(a));
    for (place, pair) in hosts.windows(2).enumerate() {
        let [(first, from), (second, to)] = pair else { continue };
        // A priority is never lowered below 1.
        let left = first.saturating_sub(lower).max(1);
        if left < *second {
            continue;
        }
        let help = if *second == 1 {
            "write \"release\", or higher priorities, as in 150, 100, 50: none is lowered below 1".to_owned()
        } else {
            format!("write a weight of -{} or less, or \"release\"", first - second + 1)
        };
        let (from, to) = (quote(from.as_str()), quote(to.as_str()));
        let is = if lower < *first { "is" } else { "counts as 1, which is" };
        let message = format!(
            "-{lower} never moves the addresses from {from} to {to}: {first}-{lower} {is} not below {second}"
        );
        if place == 0 {
            value.error(message, help);
        } else {
            // The weight works as long as the first host lives.
            value.cx.warning(&value.span(), message, help);
        }
    }
}
