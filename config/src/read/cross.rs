//! What concerns several parts of the file at once.

use crate::{
    ClusterName, Target,
    read::{Draft, cluster, listener, report_twice},
    reader::{Context, one_of, quote},
    suggest::nearest,
};

pub(super) fn check(cx: &Context<'_>, draft: &mut Draft<'_>) {
    names(cx, &draft.listeners);
    for listener in &mut draft.listeners {
        assign_cluster(cx, listener, &draft.clusters);
    }
    // A host may run pointsman-vip alone: then the file has neither.
    let vips_alone = draft.has_vips && !draft.has_clusters && !draft.has_listeners;
    if !draft.has_listeners && !vips_alone {
        let message = "the file has no [[listeners]]";
        cx.error_in_file(
            message,
            "write [[listeners]] with bind = \"0.0.0.0:5000\" and target = \"primary\"",
        );
    }
    if !draft.has_clusters && !vips_alone {
        let message = "the file has no cluster";
        cx.error_in_file(message, "write [clusters.main] with discovery = { etcd = { endpoints = [...] } }");
    }
    warn_unused_clusters(cx, draft);
}

fn names(cx: &Context<'_>, listeners: &[listener::Draft]) {
    for (index, listener) in listeners.iter().enumerate() {
        let Some((name, span)) = &listener.name else { continue };
        let earlier = listeners.iter().take(index).filter_map(|other| other.name.as_ref());
        if let Some((_, first)) = earlier.into_iter().find(|(other, _)| other == name) {
            let what = format!("listener {}", quote(name.as_str()));
            report_twice(
                cx,
                span,
                &what,
                first,
                "write name = \"...\" in one of them; it is the target's name by default",
            );
        }
    }
}

/// Finds the listener's cluster: the one that it names, or the only one.
fn assign_cluster(cx: &Context<'_>, listener: &mut listener::Draft, clusters: &[cluster::Draft<'_>]) {
    let names = || clusters.iter().map(|cluster| cluster.name);
    let cluster = match (&listener.cluster_written, clusters) {
        (Some((written, span)), _) => {
            let cluster = clusters.iter().find(|cluster| cluster.name == written);
            if cluster.is_none() && !clusters.is_empty() {
                let help = match nearest(written, names()) {
                    Some(name) => format!("did you mean \"{name}\"?"),
                    None => format!("it can be {}", one_of(names())),
                };
                cx.error(span, format!("there is no cluster {}", quote(written)), help);
            }
            cluster
        }
        (None, [only]) => Some(only),
        (None, []) => None,
        (None, [first, ..]) => {
            let message = "[[listeners]] has no `cluster`, and there are several";
            let help = format!("write cluster = \"{}\"; it can be {}", first.name, one_of(names()));
            cx.error(&listener.span, message, help);
            None
        }
    };
    let Some(cluster) = cluster else { return };
    listener.cluster = ClusterName::new(cluster.name).ok();
    check_target(cx, listener, cluster);
}

/// What a cluster without Patroni cannot offer.
fn check_target(cx: &Context<'_>, listener: &listener::Draft, cluster: &cluster::Draft<'_>) {
    if let Some((target, span)) = &listener.target
        && cluster.is_multi_master
        && *target != Target::Any
    {
        let message =
            format!("cluster {} has no `{target}`: every member of it is writable", quote(cluster.name));
        cx.error(span, message, "write target = \"any\", or probe = \"sql\" in the cluster");
    }
    if let (Some(span), true) = (&listener.tags, cluster.is_static) {
        let message = format!("the members of cluster {} have no tags", quote(cluster.name));
        cx.error(span, message, "remove tags; only Patroni's members have them");
    }
}

fn warn_unused_clusters(cx: &Context<'_>, draft: &Draft<'_>) {
    // A listener whose cluster is wrong may have meant any of them.
    if draft.listeners.is_empty() || draft.listeners.iter().any(|listener| listener.cluster.is_none()) {
        return;
    }
    for cluster in &draft.clusters {
        let used = |listener: &listener::Draft| {
            listener.cluster.as_ref().is_some_and(|name| name.as_str() == cluster.name)
        };
        if !draft.listeners.iter().any(used) {
            let message = format!("no listener uses cluster {}", quote(cluster.name));
            let help = format!("write cluster = \"{}\" in a listener, or remove the cluster", cluster.name);
            cx.warning(&cluster.span, message, help);
        }
    }
}
