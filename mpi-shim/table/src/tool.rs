//! Rows of the MPI table: the tool interface MPI_T. Rows only: nothing runs here. Columns: name, policy, result, arguments.

/// Appends the rows of this chapter and hands on to the next one.
#[doc(hidden)]
#[macro_export]
macro_rules! __rows_tool {
    ($($then:ident)::+ { $($before:tt)* }) => {
        $($then)::+! { $($before)*
            [MPI_T_category_changed tool int (stamp: intP)]
            [MPI_T_category_get_categories tool int (cat_index: int, len: int, indices: intP)]
            [MPI_T_category_get_cvars tool int (cat_index: int, len: int, indices: intP)]
            [MPI_T_category_get_index tool int (name: ptr, category_index: intP)]
            [MPI_T_category_get_info tool int (cat_index: int, name: ptr, name_len: intP, desc: ptr, desc_len: intP, num_cvars: intP, num_pvars: intP, num_categories: intP)]
            [MPI_T_category_get_num tool int (num_cat: intP)]
            [MPI_T_category_get_pvars tool int (cat_index: int, len: int, indices: intP)]
            [MPI_T_cvar_get_index tool int (name: ptr, cvar_index: intP)]
            [MPI_T_cvar_get_info hand int (cvar_index: int, name: ptr, name_len: intP, verbosity: intP, datatype: DatatypeP, enumtype: ptr, desc: ptr, desc_len: intP, bind: intP, scope: intP)]
            [MPI_T_cvar_get_num tool int (num_cvar: intP)]
            [MPI_T_cvar_handle_alloc hand int (cvar_index: int, obj_handle: ptr, handle: ptr, count: intP)]
            [MPI_T_cvar_handle_free hand int (handle: ptr)]
            [MPI_T_cvar_read tool int (handle: ptr, buf: ptr)]
            [MPI_T_cvar_write tool int (handle: ptr, buf: ptr)]
            [MPI_T_enum_get_info hand int (enumtype: ptr, num: intP, name: ptr, name_len: intP)]
            [MPI_T_enum_get_item hand int (enumtype: ptr, index: int, value: intP, name: ptr, name_len: intP)]
            [MPI_T_finalize hand int ()]
            [MPI_T_init_thread hand int (required: int, provided: intP)]
            [MPI_T_pvar_get_index tool int (name: ptr, var_class: int, pvar_index: intP)]
            [MPI_T_pvar_get_info hand int (pvar_index: int, name: ptr, name_len: intP, verbosity: intP, var_class: intP, datatype: DatatypeP, enumtype: ptr, desc: ptr, desc_len: intP, bind: intP, readonly: intP, continuous: intP, atomic: intP)]
            [MPI_T_pvar_get_num tool int (num_pvar: intP)]
            [MPI_T_pvar_handle_alloc hand int (session: ptr, pvar_index: int, obj_handle: ptr, handle: ptr, count: intP)]
            [MPI_T_pvar_handle_free tool int (session: ptr, handle: ptr)]
            [MPI_T_pvar_read tool int (session: ptr, handle: ptr, buf: ptr)]
            [MPI_T_pvar_readreset tool int (session: ptr, handle: ptr, buf: ptr)]
            [MPI_T_pvar_reset tool int (session: ptr, handle: ptr)]
            [MPI_T_pvar_session_create hand int (session: ptr)]
            [MPI_T_pvar_session_free hand int (session: ptr)]
            [MPI_T_pvar_start tool int (session: ptr, handle: ptr)]
            [MPI_T_pvar_stop tool int (session: ptr, handle: ptr)]
            [MPI_T_pvar_write tool int (session: ptr, handle: ptr, buf: ptr)]
        }
    };
}
