//! What components do that do what they should.

use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::routing::Decision;

use crate::guest::least_in_flight;
use crate::support::{Lab, generous, route};

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("a_request_is_routed", || {
        let lab = Lab::new();
        let policy = lab.policy(World::Routing, &least_in_flight());
        assert_eq!(route(&policy), Ok(Decision::Pick(1)));
        Ok(())
    }),
    Trial::test("a_core_module_is_made_a_component", || {
        let lab = Lab::new();
        let module = lab.compile(World::Routing, &least_in_flight().core(), &generous(World::Routing))?;
        assert_eq!(module.world(), World::Routing);
        Ok(())
    })]
}
