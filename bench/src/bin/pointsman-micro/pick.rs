//! Which member a session goes to.

use std::hint::black_box;
use std::net::Ipv4Addr;

use pointsman_core::balance::{self, Draw, Policy};

use crate::{Micro, micro, repeat};

struct Member {
    name: String,
    weight: u32,
    load: u32,
}

impl balance::Candidate for Member {
    fn key(&self) -> &str {
        &self.name
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn load(&self) -> u32 {
        self.load
    }
}

pub(crate) fn all() -> Vec<Micro> {
    let policies = [
        ("round-robin", Policy::RoundRobin),
        ("least-connections", Policy::LeastConnections),
        ("source", Policy::Source),
        ("random-two", Policy::RandomTwo),
        ("first", Policy::First),
    ];
    let sizes = [(2_u32, 2000_u64), (10, 1000), (1000, 20)];
    let every = policies.into_iter().flat_map(|policy| sizes.map(|size| (policy, size)));
    every.map(|((name, policy), (members, times))| pick(name, policy, members, times)).collect()
}

fn pick(name: &str, policy: Policy, members: u32, times: u64) -> Micro {
    micro(format!("pick/{name}/{members}"), times, move || {
        let member = |n: u32| Member { name: format!("pg{n}"), weight: black_box(1), load: n * 7 % 13 };
        let members: Vec<_> = (0..members).map(member).collect();
        repeat(move |turn| {
            let random = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let [.., a, b] = turn.to_be_bytes();
            let draw = Draw { ticket: turn, random, client: Ipv4Addr::new(10, 0, a, b).into() };
            balance::pick(policy, &members, draw, |_| false)
        })
    })
}
