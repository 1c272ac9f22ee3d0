//! What makes a layout a compile-time fact.

/// One field of a type that stands in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub ty: &'static str,
    pub offset: usize,
    pub size: usize,
}

#[cfg(any(test, feature = "std"))]
impl Field {
    /// The type as the source has it: `stringify!` puts spaces into what came through another macro.
    pub fn type_name(&self) -> String {
        self.ty.replace(" <", "<").replace("< ", "<").replace(" >", ">")
    }
}

/// The layout of one type that stands in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub size: usize,
    pub align: usize,
    pub fields: &'static [Field],
}

/// A type without padding for which every bit pattern is valid, so that it may be read from and written to map memory.
///
/// # Safety
/// Implemented by [`abi!`](crate::abi!) alone, which asserts both for every field.
pub unsafe trait Plain: Sized + 'static {}

macro_rules! plain {
    ($($ty:ty),*) => { $(
        // SAFETY: integers and arrays of them have no padding and no invalid bit pattern.
        unsafe impl Plain for $ty {}
    )* };
}
plain!(u8, u16, u32, u64);

// SAFETY: an array has no padding of its own.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// The bytes of a value as they stand in a map.
pub fn as_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no padding, so every byte is initialised; the slice borrows `value`.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A value from the bytes of a map; `None` if the length is another one.
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length is that of `T`, any bit pattern is a valid `T`, and the read does not need alignment.
    Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Declares a type that stands in a map: `repr(C)`, its size asserted, padding refused, its fields in a table.
#[macro_export]
macro_rules! abi {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $( $(#[$field_meta:meta])* pub $field:ident: $ty:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        const _: () = assert!(size_of::<$name>() == $size, concat!(stringify!($name), ": size"));
        const _: () = assert!(
            $size == 0 $( + size_of::<$ty>() )*,
            concat!(stringify!($name), ": padding between fields")
        );

        // SAFETY: no padding (asserted above) and every field is `Plain` itself (`LAYOUT` would not compile otherwise).
        unsafe impl $crate::abi::Plain for $name {}

        impl $name {
            pub const LAYOUT: $crate::abi::Layout = $crate::abi::Layout {
                name: stringify!($name),
                size: $size,
                align: align_of::<$name>(),
                fields: &[ $( $crate::abi::Field {
                    name: stringify!($field),
                    ty: stringify!($ty),
                    offset: core::mem::offset_of!($name, $field),
                    size: $crate::abi::plain_size::<$ty>(),
                }, )* ],
            };
        }
    };
}

/// `size_of`, for types that are fit to stand in a map only.
#[doc(hidden)]
pub const fn plain_size<T: Plain>() -> usize {
    size_of::<T>()
}

/// Writes one word by itself. Neighbouring plain stores of zero are merged into a call that clears memory, which costs
/// more than they do.
#[inline(always)]
pub fn put<T: Plain>(place: &mut T, value: T) {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::from_mut(place).write_volatile(value) }
}
