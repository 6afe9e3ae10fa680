//! Rows of the MPI table: groups. Rows only: nothing runs here. Columns: name, policy, result, arguments.

/// Appends the rows of this chapter and hands on to the next one.
#[doc(hidden)]
#[macro_export]
macro_rules! __rows_group {
    ($($then:ident)::+ { $($before:tt)* }) => {
        $crate::__rows_types! { $($then)::+ { $($before)*
            [MPI_Group_c2f hand int (group: Group)]
            [MPI_Group_compare hand int (group1: Group, group2: Group, result: intP)]
            [MPI_Group_difference hand int (group1: Group, group2: Group, newgroup: GroupP)]
            [MPI_Group_excl hand int (group: Group, n: int, ranks: intP, newgroup: GroupP)]
            [MPI_Group_f2c hand Group (group: int)]
            [MPI_Group_free hand int (group: GroupP)]
            [MPI_Group_incl hand int (group: Group, n: int, ranks: intP, newgroup: GroupP)]
            [MPI_Group_intersection hand int (group1: Group, group2: Group, newgroup: GroupP)]
            [MPI_Group_range_excl hand int (group: Group, n: int, ranges: ptr, newgroup: GroupP)]
            [MPI_Group_range_incl hand int (group: Group, n: int, ranges: ptr, newgroup: GroupP)]
            [MPI_Group_rank hand int (group: Group, rank: intP)]
            [MPI_Group_size hand int (group: Group, size: intP)]
            [MPI_Group_translate_ranks hand int (group1: Group, n: int, ranks1: intP, group2: Group, ranks2: intP)]
            [MPI_Group_union hand int (group1: Group, group2: Group, newgroup: GroupP)]
        } }
    };
}
