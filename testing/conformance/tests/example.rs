//! The example of a device passes the suite.

#[path = "../examples/device.rs"]
mod device;

hmm_conformance::suite!(shelf, || device::Shelf::new(1024));
