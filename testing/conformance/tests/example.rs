//! The examples of devices pass the suite.

#[path = "../examples/device.rs"]
mod device;

#[path = "../examples/coherent.rs"]
mod coherent;

hmm_conformance::suite!(shelf, || device::Shelf::new(1024));

hmm_conformance::suite!(bank, || coherent::Bank::new(1024));
