//! What points to a device is a device: decorators and the engine take any of them.

use std::sync::Arc;
use std::time::Duration;

use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, Store, Transfer, Usage};

macro_rules! forward {
    ($($pointer:ty),+) => {$(
        impl<D: Device + ?Sized> Device for $pointer {
            fn caps(&self) -> Caps {
                (**self).caps()
            }

            fn usage(&self) -> Usage {
                (**self).usage()
            }

            fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
                (**self).alloc(frames)
            }

            fn alloc_large(&self) -> Option<DevicePfn> {
                (**self).alloc_large()
            }

            fn store(&self, run: Store<'_>) -> Transfer {
                (**self).store(run)
            }

            fn fetch(&self, run: Fetch<'_>) -> Transfer {
                (**self).fetch(run)
            }

            fn free(&self, frames: &[DevicePfn]) {
                (**self).free(frames);
            }

            fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
                (**self).holds(frame, bytes)
            }

            fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
                (**self).is_worth_keeping(frame)
            }

            fn memory(&self) -> Option<std::ops::Range<u64>> {
                (**self).memory()
            }

            fn patience(&self) -> Option<Duration> {
                (**self).patience()
            }

            fn flush(&self) -> Result<(), DeviceError> {
                (**self).flush()
            }
        }
    )+};
}

forward!(&D, Arc<D>, Box<D>);
