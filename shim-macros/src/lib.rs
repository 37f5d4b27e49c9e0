//! The attribute `#[containerd_shim]` of shim-runtime.

#![forbid(unsafe_code)]

mod args;
mod errors;
mod item;
mod suggest;
mod validate;

use crate::errors::Errors;

/// Makes a struct a containerd shim.
#[proc_macro_attribute]
pub fn containerd_shim(
    options: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    let mut errors = Errors::default();
    item::parse(item.clone().into(), &mut errors);
    let args = args::parse(options.into(), &mut errors);
    validate::check(args, &mut errors);
    let mut expansion = item;
    expansion.extend(proc_macro::TokenStream::from(errors.into_compile_errors()));
    expansion
}
