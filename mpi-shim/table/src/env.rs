//! Rows of the MPI table: environment, process and error handling. Rows only: nothing runs here. Columns: name, policy, result, arguments.

/// Appends the rows of this chapter and hands on to the next one.
#[doc(hidden)]
#[macro_export]
macro_rules! __rows_env {
    ($($then:ident)::+ { $($before:tt)* }) => {
        $crate::__rows_p2p! { $($then)::+ { $($before)*
            [MPI_Abort hand int (comm: Comm, errorcode: int)]
            [MPI_Add_error_class hand int (errorclass: intP)]
            [MPI_Add_error_code hand int (errorclass: int, errorcode: intP)]
            [MPI_Add_error_string hand int (errorcode: int, string: ptr)]
            [MPI_Alloc_mem hand int (size: aint, info: Info, baseptr: ptr)]
            [MPI_Errhandler_c2f hand int (errhandler: Errhandler)]
            [MPI_Errhandler_create hand int (function: ptr, errhandler: ErrhandlerP)]
            [MPI_Errhandler_f2c hand Errhandler (errhandler: int)]
            [MPI_Errhandler_free hand int (errhandler: ErrhandlerP)]
            [MPI_Errhandler_get hand int (comm: Comm, errhandler: ErrhandlerP)]
            [MPI_Errhandler_set hand int (comm: Comm, errhandler: Errhandler)]
            [MPI_Error_class hand int (errorcode: int, errorclass: intP)]
            [MPI_Error_string hand int (errorcode: int, string: ptr, resultlen: intP)]
            [MPI_Finalize blocks int ()]
            [MPI_Finalized hand int (flag: intP)]
            [MPI_Free_mem hand int (base: ptr)]
            [MPI_Get_library_version hand int (version: ptr, resultlen: intP)]
            [MPI_Get_processor_name hand int (name: ptr, resultlen: intP)]
            [MPI_Get_version hand int (version: intP, subversion: intP)]
            [MPI_Info_c2f hand int (info: Info)]
            [MPI_Info_create hand int (info: InfoP)]
            [MPI_Info_delete hand int (info: Info, key: ptr)]
            [MPI_Info_dup hand int (info: Info, newinfo: InfoP)]
            [MPI_Info_f2c hand Info (info: int)]
            [MPI_Info_free hand int (info: InfoP)]
            [MPI_Info_get hand int (info: Info, key: ptr, valuelen: int, value: ptr, flag: intP)]
            [MPI_Info_get_nkeys hand int (info: Info, nkeys: intP)]
            [MPI_Info_get_nthkey hand int (info: Info, n: int, key: ptr)]
            [MPI_Info_get_valuelen hand int (info: Info, key: ptr, valuelen: intP, flag: intP)]
            [MPI_Info_set hand int (info: Info, key: ptr, value: ptr)]
            [MPI_Init hand int (argc: intP, argv: ptr)]
            [MPI_Init_thread hand int (argc: intP, argv: ptr, required: int, provided: intP)]
            [MPI_Initialized hand int (flag: intP)]
            [MPI_Is_thread_main hand int (flag: intP)]
            [MPI_Pcontrol hand int (level: int)]
            [MPI_Query_thread hand int (provided: intP)]
            [MPI_Wtick hand double ()]
            [MPI_Wtime hand double ()]
        } }
    };
}
