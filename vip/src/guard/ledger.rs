//! What the guard has to clean up behind the worker, should it die now.

use std::collections::BTreeMap;

use ipnet::IpNet;
use pointsman_config::VipName;

use super::wire::{Cover, Farewell};

/// The virtual routers, as the worker told of them.
#[derive(Debug, Default)]
pub(super) struct Ledger(BTreeMap<VipName, Entry>);

#[derive(Debug)]
struct Entry {
    cover: Cover,
    held: bool,
    /// There is no such virtual router any more, but it was held at last.
    forgotten: bool,
    /// What earlier descriptions named, and may still be there.
    former: Vec<(u32, IpNet)>,
}

impl Ledger {
    /// A virtual router, new or changed.
    pub(super) fn cover(&mut self, cover: Cover) {
        let Some(entry) = self.0.get_mut(&cover.router) else {
            let entry = Entry { held: false, forgotten: false, former: Vec::new(), cover };
            self.0.insert(entry.cover.router.clone(), entry);
            return;
        };
        let old = std::mem::replace(&mut entry.cover, cover);
        entry.forgotten = false;
        if entry.held {
            let index = old.index;
            entry.former.extend(old.addresses.into_iter().map(|address| (index, address)));
        }
    }

    /// It is no more. While it is held it is only marked: what it had may still be there.
    pub(super) fn forget(&mut self, router: &VipName) {
        let Some(entry) = self.0.get_mut(router) else { return };
        entry.forgotten = true;
        if !entry.held {
            self.0.remove(router);
        }
    }

    /// Its addresses are about to be there, or are gone.
    pub(super) fn held(&mut self, router: &VipName, held: bool) {
        let Some(entry) = self.0.get_mut(router) else { return };
        entry.held = held;
        if !held {
            entry.former.clear();
            if entry.forgotten {
                self.0.remove(router);
            }
        }
    }

    /// True when something is held.
    pub(super) fn holds(&self) -> bool {
        self.0.values().any(|entry| entry.held)
    }

    /// The virtual routers that are held.
    pub(super) fn held_names(&self) -> Vec<VipName> {
        self.held_entries().map(|entry| entry.cover.router.clone()).collect()
    }

    /// Every address that may be there, once, with the number of its interface.
    pub(super) fn addresses(&self) -> Vec<(u32, IpNet)> {
        let mut addresses = Vec::new();
        for Entry { cover, former, .. } in self.held_entries() {
            let present = cover.addresses.iter().map(|address| (cover.index, *address));
            for address in present.chain(former.iter().copied()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses
    }

    /// What is to be sent when they are gone.
    pub(super) fn farewells(&self) -> impl Iterator<Item = (&Cover, &Farewell)> {
        self.held_entries()
            .flat_map(|entry| entry.cover.farewells.iter().map(|farewell| (&entry.cover, farewell)))
    }

    fn held_entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values().filter(|entry| entry.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VipName {
        VipName::new(text).unwrap()
    }

    fn cover(index: u32, addresses: &[&str]) -> Cover {
        Cover {
            router: name("a"),
            index,
            interface: "eth0".to_owned(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            farewells: Vec::new(),
        }
    }

    fn named(ledger: &Ledger) -> Vec<String> {
        ledger.addresses().iter().map(|(index, net)| format!("{index} {net}")).collect()
    }

    #[test]
    fn only_what_is_held_is_removed() {
        let mut ledger = Ledger::default();
        ledger.cover(cover(1, &["192.0.2.1/24", "192.0.2.2/24"]));
        assert!(!ledger.holds() && named(&ledger).is_empty());
        ledger.held(&name("a"), true);
        assert_eq!(named(&ledger), ["1 192.0.2.1/24", "1 192.0.2.2/24"]);
        ledger.held(&name("a"), false);
        assert!(!ledger.holds() && named(&ledger).is_empty());
    }

    #[test]
    fn a_new_description_of_what_is_held_forgets_nothing_until_it_is_held_no_more() {
        let mut ledger = Ledger::default();
        ledger.cover(cover(1, &["192.0.2.1/24", "192.0.2.2/24"]));
        ledger.held(&name("a"), true);
        ledger.cover(cover(1, &["192.0.2.1/24"]));
        ledger.cover(cover(2, &["192.0.2.1/24"]));
        assert_eq!(named(&ledger), ["2 192.0.2.1/24", "1 192.0.2.1/24", "1 192.0.2.2/24"]);
        ledger.held(&name("a"), false);
        ledger.held(&name("a"), true);
        assert_eq!(named(&ledger), ["2 192.0.2.1/24"]);
    }

    #[test]
    fn a_router_that_is_no_more_is_cleaned_up_if_it_was_held() {
        let mut ledger = Ledger::default();
        ledger.cover(cover(1, &["192.0.2.1/24"]));
        ledger.held(&name("a"), true);
        ledger.forget(&name("a"));
        assert_eq!(named(&ledger), ["1 192.0.2.1/24"]);
        ledger.held(&name("a"), false);
        ledger.held(&name("a"), true);
        assert!(!ledger.holds(), "it is unknown now");
    }
}
