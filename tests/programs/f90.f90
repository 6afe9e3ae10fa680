! Fortran 90: `use mpi`, requests and statuses in arrays, a Cartesian grid, subarrays, groups, non-blocking collectives, an error handler. f90 [ROUNDS]
program f90
  use mpi
  implicit none
  integer, parameter :: n = 6
  integer :: rank, ranks, rounds, round, i, ierr, grid, row, low, high, requests(4), statuses(MPI_STATUS_SIZE, 4)
  integer :: inner, edge(2), edge_of(6), reduction, class, kind_size, dims(2) = 0, which, handler
  integer :: field(0:n + 1, 0:n + 1), mine, total, whole
  integer(8) :: sum
  integer :: everybody, backwards, pairs, turned, others(6), parts(6), again(6), sizes(6), places(6), types(6), color
  logical :: periods(2) = .true., done
  character(len=32) :: word
  call MPI_Init(ierr)
  call get_command_argument(1, word)
  rounds = 100
  if (len_trim(word) > 0) read (word, *) rounds
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, ierr)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks, ierr)
  call MPI_Dims_create(ranks, 2, dims, ierr)
  call MPI_Cart_create(MPI_COMM_WORLD, 2, dims, periods, .false., grid, ierr)
  call MPI_Cart_sub(grid, [.true., .false.], row, ierr)
  call MPI_Cart_shift(grid, 0, 1, low, high, ierr)
  call MPI_Comm_set_errhandler(grid, MPI_ERRORS_RETURN, ierr)
  ! The same ranks, the other way round.
  call MPI_Comm_group(grid, everybody, ierr)
  call MPI_Group_incl(everybody, ranks, [(ranks - i, i=1, ranks)], backwards, ierr)
  call MPI_Group_union(backwards, everybody, color, ierr)
  call MPI_Group_compare(color, backwards, which, ierr)
  call MPI_Group_free(color, ierr)
  if (which /= MPI_IDENT .or. ranks > size(parts)) error stop "another group"
  call MPI_Comm_create(grid, backwards, turned, ierr)
  ! A column without the halo.
  call MPI_Type_create_subarray(2, [n + 2, n + 2], [n, 1], [1, 1], MPI_ORDER_FORTRAN, MPI_INTEGER, inner, ierr)
  call MPI_Type_commit(inner, ierr)
  call MPI_Type_size(inner, kind_size, ierr)
  if (kind_size /= 4 * n) error stop "wrong size"
  sum = 0
  field = 0
  do i = 1, n
    field(1:n, i) = [(rank * 100 + i * 10 + which, which=1, n)]
  end do
  do round = 1, rounds
    ! Columns: the first to the one below, the last to the one above; they come into the halo.
    call MPI_Irecv(field(0, n + 1), 1, MPI_INTEGER, high, 1, grid, requests(1), ierr)
    call MPI_Irecv(edge, 2, MPI_INTEGER, low, 2, grid, requests(2), ierr)
    call MPI_Isend(field(1, 1), 1, MPI_INTEGER, low, 1, grid, requests(3), ierr)
    call MPI_Issend([field(2, n), round], 2, MPI_INTEGER, high, 2, grid, requests(4), ierr)
    mine = field(1 + mod(round, n), 1 + mod(rank + round, n))
    call MPI_Iallreduce(mine, total, 1, MPI_INTEGER, MPI_SUM, grid, reduction, ierr)
    call MPI_Waitall(4, requests, statuses, ierr)
    if (any(requests /= MPI_REQUEST_NULL)) error stop "a request is left"
    if (statuses(MPI_SOURCE, 1) /= high .or. statuses(MPI_TAG, 2) /= 2 .or. edge(2) /= round) error stop "wrong message"
    done = .false.
    do while (.not. done)
      call MPI_Test(reduction, done, MPI_STATUS_IGNORE, ierr)
    end do
    call MPI_Allreduce(mine, whole, 1, MPI_INTEGER, MPI_SUM, MPI_COMM_WORLD, ierr)
    if (whole /= total) error stop "wrong sum"
    call MPI_Sendrecv(field, 1, inner, rank, 3, field(1, n), n, MPI_INTEGER, rank, 3, grid, MPI_STATUS_IGNORE, ierr)
    if (any(field(1:n, 1) /= field(1:n, n))) error stop "wrong column"
    field(1:n, 1 + mod(round, n)) = mod(field(1:n, 1 + mod(round, n)) * 3 + total + field(0, n + 1) + edge(1), 100003)
    sum = mod(sum * 31 + total, 1000000007_8)
    ! To each one its own, by bytes or by integers.
    others(:ranks) = [(1000 * rank + 10 * i + mod(round, 7), i=1, ranks)]
    do i = 1, ranks
      types(i) = merge(MPI_INTEGER, MPI_BYTE, mod(i, 2) == 0)
      sizes(i) = merge(1, 4, mod(i, 2) == 0)
      places(i) = 4 * (i - 1)
    end do
    call MPI_Comm_rank(turned, which, ierr)
    if (which /= ranks - 1 - rank) error stop "wrong place"
    parts(:ranks) = [(merge(1, 4, mod(which + 1, 2) == 0), i=1, ranks)]
    again(:ranks) = [(merge(MPI_INTEGER, MPI_BYTE, mod(which + 1, 2) == 0), i=1, ranks)]
    pairs = 0
    call MPI_Alltoallw(others, sizes, places, types, edge_of, parts, places, again, turned, ierr)
    do i = 1, ranks
      if (edge_of(i) /= 1000 * (ranks - i) + 10 * (which + 1) + mod(round, 7)) pairs = pairs + 1
    end do
    if (pairs /= 0) error stop "wrong part"
    ! An error comes back, with its class, and harms nothing.
    if (mod(round, 50) == 1) then
      call MPI_Send(mine, 1, MPI_INTEGER, ranks + 5, 1, grid, ierr)
      call MPI_Error_class(ierr, class, which)
      call MPI_Comm_get_errhandler(grid, handler, which)
      if (class /= MPI_ERR_RANK .or. handler /= MPI_ERRORS_RETURN) error stop "another error"
    end if
    call usleep_1ms()
  end do
  call MPI_Comm_free(turned, ierr)
  call MPI_Group_free(backwards, ierr)
  call MPI_Group_free(everybody, ierr)
  call MPI_Type_free(inner, ierr)
  call MPI_Comm_free(row, ierr)
  call MPI_Comm_free(grid, ierr)
  call MPI_Finalize(ierr)
  if (rank == 0) print '(a,z16.16)', "result ", sum
  if (rank == 0) print '(a)', "EXIT-SUCCESS"
contains
  subroutine usleep_1ms()
    use iso_c_binding
    interface
      integer(c_int) function usleep(microseconds) bind(c)
        import :: c_int
        integer(c_int), value :: microseconds
      end function
    end interface
    integer(c_int) :: ignored
    ignored = usleep(1000_c_int)
  end subroutine
end program
